"""``mlx_vlm.chat`` as a user types into it."""

from mlx_vlm import apply_chat_template, generate
from support import GOLDENS, MESSAGES, image_path, run_module

QUESTION, INDEX = MESSAGES[2], 2
LINES = [
    QUESTION,
    "/clear",
    f"/image {image_path('photo')}",
    QUESTION,
    "/clear",
    f"/image {image_path('tall')}",
    QUESTION,
    "/image none.png",
    "/exit",
]


def test_pictures_questions_and_commands_can_be_typed_in(fp32_checkpoint, model, processor):
    options = ["--model", fp32_checkpoint, "--temperature", "0"]
    options += ["--max-tokens", str(GOLDENS["new_tokens"])]
    result = run_module("mlx_vlm.chat", *options, input="\n".join(LINES) + "\n")
    assert result.returncode == 0, result.stderr
    parts = result.stdout.split("Assistant: ")[1:]
    text_only, photo, tall = (part.split("\nYou: ")[0].strip() for part in parts)
    prompt = apply_chat_template(processor, model.config, QUESTION)
    expected = generate(model, processor, prompt, max_tokens=GOLDENS["new_tokens"]).text
    assert text_only == expected
    assert photo == GOLDENS["generate"]["hf"]["photo"][INDEX]["text"]
    assert tall == GOLDENS["generate"]["hf"]["tall"][INDEX]["text"]
    assert "Image file not found: none.png" in result.stdout
    assert "Goodbye!" in result.stdout


def test_the_end_of_the_input_ends_the_chat(fp32_checkpoint):
    for command in ("mlx_vlm.chat", "mlx_vlm_moxin"):
        first = ["chat"] if command == "mlx_vlm_moxin" else []
        options = [*first, "--model", fp32_checkpoint, "--max-tokens", "2"]
        result = run_module(command, *options, input=f"{QUESTION}\n")
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("You: ") == 2
        assert "Error" not in result.stdout
