"""Histories with unstripped answers give the published builders' prompts, also in training."""

import random
from dataclasses import dataclass

import pytest
from family_members import FAMILY
from family_members import converted as converted_member
from mlx_vlm import apply_chat_template
from mlx_vlm.models.moxin import ModelConfig
from mlx_vlm.trainer.datasets.next_token import VisionDataset
from mlx_vlm.trainer.datasets.preference import PreferenceVisionDataset
from mlx_vlm.trainer.vlm.sft.dataset import VisionDataset as SFTDataset
from mlx_vlm.utils import load_config, load_processor
from moxin_tiny import CHECKPOINT as MOXIN_TINY
from source_checkpoints import NATIVE_FILES, converted, write_ominix
from support import HF_CHECKPOINT, image_path

CONVERSATIONS = 300


@dataclass
class Builder:
    """A prompt builder of github TRI-ML/prismatic-vlms, reimplemented from its rules.

    ``<image>`` is removed from a message, then the space around it. A question is inserted into
    ``question``, the first one after ``system``. An answer, or one space if it is empty, is
    followed by the end token. The space at the end of the finished prompt is removed.
    """

    question: str
    system: str = ""
    is_inside: bool = False  # whether the system prompt is inserted into the first question

    def prompt(self, messages: list[str]) -> str:
        text = ""
        for index, message in enumerate(messages):
            message = message.replace("<image>", "").strip()
            if index % 2:
                text += (message or " ") + "</s>"
            elif index == 0 and self.is_inside:
                text += self.question.format(self.system + message)
            else:
                text += (self.system if index == 0 else "") + self.question.format(message)
        return text.rstrip()


PURE = Builder("In: {}\nOut: ")
VICUNA = Builder(
    "USER: {} ASSISTANT: ",
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
)
LLAMA2 = Builder(
    "[INST] {} [/INST] ",
    "<<SYS>\nYou are a helpful language and vision assistant. You are able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using "
    "natural language.\n<</SYS>>\n\n",
    is_inside=True,
)
MISTRAL = Builder("[INST] {} [/INST] ")
MEMBERS = {"clip": VICUNA, "in1k": LLAMA2, "dinoclip": MISTRAL, "siglip384": PURE, "dino": VICUNA}
CHECKPOINTS = {
    "HF, as it is": PURE,
    "HF, by stock mlx-vlm": PURE,
    "HF": PURE,
    "native": PURE,
    "OminiX": PURE,
    "moxin-tiny": PURE,
    "moxin-tiny, converted": PURE,
    **MEMBERS,
    "clip, as it is": VICUNA,
}


@pytest.fixture(scope="module")
def checkpoint(request, fp32_checkpoint, tmp_path_factory):
    """A checkpoint directory by its name in :data:`CHECKPOINTS`."""
    name, folder = request.param, tmp_path_factory.mktemp("checkpoint")
    places = {
        "HF, as it is": lambda: HF_CHECKPOINT,
        "HF, by stock mlx-vlm": lambda: fp32_checkpoint,
        "HF": lambda: converted(HF_CHECKPOINT, folder / "out"),
        "native": lambda: converted(NATIVE_FILES, folder / "out"),
        "OminiX": lambda: converted(write_ominix(folder / "in"), folder / "out"),
        "moxin-tiny": lambda: MOXIN_TINY,
        "moxin-tiny, converted": lambda: converted(MOXIN_TINY, folder / "out"),
        "clip, as it is": lambda: FAMILY / "clip" / "hf",
    }
    make = places.get(name, lambda: converted_member(name, "native", folder / "out"))
    return name, make()


SPACE = ("", "", " ", "\n", "  ", "\t", "\r\n", "\u00a0", "\u2003")
WORDS = ("a", "A dog.", "In: b\nOut:", "<image>", "é", "日本", "</s>", "[INST]", "two  spaces", "")


def conversations(is_answered: bool) -> list[list[str]]:
    """Questions and answers in turns, with spaces around them as from models and people."""
    choose = random.Random(17)

    def text() -> str:
        words = choose.choices(WORDS, k=choose.randrange(4))
        parts = [choose.choice(SPACE) + word for word in words]
        return "".join([*parts, choose.choice(SPACE)])

    lengths = [2 * choose.randrange(1, 5) - (not is_answered) for _ in range(CONVERSATIONS)]
    return [[text() for _ in range(length)] for length in lengths]


def turns(messages: list[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, indirect=True)
def test_random_histories_give_the_published_prompt(checkpoint):
    name, path = checkpoint
    config, processor = load_config(path), load_processor(path)
    for messages in conversations(is_answered=False):
        prompt = apply_chat_template(processor, config, turns(messages), num_images=1)
        assert prompt == CHECKPOINTS[name].prompt(messages)


@pytest.mark.parametrize("train_on_completions", [False, True])
@pytest.mark.parametrize("checkpoint", ["HF, by stock mlx-vlm", "clip", "in1k"], indirect=True)
def test_training_sees_the_published_prompt(checkpoint, train_on_completions):
    name, path = checkpoint
    # The arguments of mlx_vlm.train.
    config, processor = ModelConfig.from_dict(load_config(path)).to_dict(), load_processor(path)
    picture = image_path("tall")
    rows = [{"images": [picture], "messages": turns(m)} for m in conversations(True)[:30]]
    options = {"train_on_completions": train_on_completions}
    sets = [
        SFTDataset(rows, config, processor, options),
        VisionDataset(rows, config, processor, **options),
        PreferenceVisionDataset(
            [{**row, "chosen": row["messages"], "rejected": row["messages"]} for row in rows],
            config,
            processor,
        ),
    ]
    for index, messages in enumerate(conversations(True)[:30]):
        prompt = CHECKPOINTS[name].prompt(messages)
        expected = processor(prompt, [picture])["input_ids"].reshape(-1).tolist()
        for rows_seen in sets:
            seen = rows_seen[index]
            ids = seen["chosen_input_ids"] if "chosen_input_ids" in seen else seen["input_ids"]
            assert ids.reshape(-1).tolist() == expected
