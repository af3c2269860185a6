"""The question that an action model answers, as text and as token ids.

Reference: ``get_openvla_prompt`` in vla-scripts/deploy.py and ``predict_action`` in
prismatic/extern/hf/modeling_prismatic.py of openvla/openvla.
"""

from typing import Any

from mlx_vlm.models.moxin.config import ModelConfig

QUESTION = "What action should the robot take to {}?"
# By the name of the prompt that the decoder was trained with: OpenVLA v0.2, and v0.1 on Vicuna.
PROMPTS = {
    "pure": "In: {}\nOut:",
    "vicuna": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: {} ASSISTANT:"
    ),
}


def question(instruction: str) -> str:
    """The question with ``instruction`` in lower case, as in training."""
    return QUESTION.format(instruction.lower())


def action_prompt(instruction: str, prompt_format: str = "pure") -> str:
    """The prompt without ``<s>``.

    Args:
        instruction: the robot's task, such as "pick up the red cup".
        prompt_format: name in ``PROMPTS``.

    Raises:
        ValueError: if action models have no such prompt.
    """
    if prompt_format not in PROMPTS:
        raise ValueError(
            f"Action models have the prompts {' and '.join(PROMPTS)}, this one has "
            f"prompt_format {prompt_format!r}"
        )
    return PROMPTS[prompt_format].format(question(instruction))


def prompt_ids(tokenizer: Any, config: ModelConfig, instruction: str) -> list[int]:
    """Ids of the prompt without ``<s>``, with ``action_config.append_token_id`` at its end.

    Raises:
        ValueError: if ``instruction`` has halves of characters, as JSON and command lines may, or
            action models have no such prompt.
    """
    try:
        instruction.encode()
    except UnicodeEncodeError as error:
        raise ValueError("instruction has halves of characters (surrogates)") from error
    if config.action_config.drop_image_marker:
        instruction = instruction.replace("<image>", "")
    text = action_prompt(instruction, config.prompt_format)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if ids[:1] == [config.bos_token_id]:
        ids = ids[1:]
    last = config.action_config.append_token_id
    return ids if last is None or ids[-1:] == [last] else [*ids, last]
