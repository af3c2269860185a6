"""``batch_generate`` applies the chat template once, also to formatted prompts."""

from pathlib import Path

from mlx_vlm import apply_chat_template, batch_generate, load
from mlx_vlm.generate import ar

TINY = Path(__file__).parents[1] / "moxin_tiny"
QUESTION = "What colour is the circle?"


def test_a_prompt_is_the_same_with_and_without_the_chat_template_beforehand():
    model, processor = load(str(TINY / "checkpoint"))
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "red"}]
    turns.append({"role": "user", "content": "Where is it?"})
    once = apply_chat_template(processor, model.config, QUESTION, num_images=1)
    several = apply_chat_template(processor, model.config, turns, num_images=1)
    for prompt, expected in ((QUESTION, once), (once, once), (turns, several), (several, several)):
        assert ar.apply_chat_template(processor, model.config, prompt, num_images=1) == expected
    pictures = [str(TINY / "demo.png")] * 2
    answers = batch_generate(model, processor, pictures, prompts=[QUESTION, once], max_tokens=4)
    assert answers.texts == ["red", "red"]
    assert answers.stats.prompt_tokens == 2 * 76


def test_a_message_that_only_looks_like_half_a_prompt_is_a_message():
    model, processor = load(str(TINY / "checkpoint"))
    for message in ("In: a", "a\nOut:", ""):
        once = apply_chat_template(processor, model.config, message)
        assert ar.apply_chat_template(processor, model.config, message) == once
