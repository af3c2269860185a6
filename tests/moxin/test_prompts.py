"""Prompts equal those of the published prompt builders, turn by turn."""

import json

import pytest
from mlx_vlm.models.moxin.prompts import PROMPT_FORMATS, chat_template
from mlx_vlm.models.moxin.tokenization_moxin import load_tokenizer
from support import HF_CHECKPOINT, REFERENCE

CASES = json.loads((REFERENCE / "family" / "prompts.json").read_text(encoding="utf-8"))


def render(name: str, turns: list[tuple[str, str]], generation: bool = True) -> str:
    tokenizer = load_tokenizer(HF_CHECKPOINT, own_template=False, prompt_format=name)
    conversation = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=generation
    )


def turns(case: dict, *more: tuple[str, str]) -> list[tuple[str, str]]:
    roles = ("user", "assistant")
    messages = [(roles[i % 2], message) for i, message in enumerate(case["messages"])]
    return [*messages, *more]


def test_every_format_has_cases():
    assert CASES.keys() == PROMPT_FORMATS.keys()


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_conversations_become_the_reference_prompts(name):
    for case in CASES[name]:
        if case["system_prompt"] is None:
            assert render(name, turns(case)) == case["prompt"]
            answered = render(name, turns(case, ("assistant", "done")), generation=False)
            assert answered == case["with_answer"]


@pytest.mark.parametrize("name", ["vicuna", "llama2-chat"])
def test_a_system_message_replaces_the_prompts_own(name):
    for case in CASES[name]:
        if case["system_prompt"] is not None:
            system = ("system", case["system_prompt"])
            assert render(name, [system, *turns(case)]) == case["prompt"]


def test_answers_are_stripped_and_lose_image_markers():
    conversation = [("user", "a"), ("assistant", " b\n<image>"), ("user", "c")]
    assert render("pure", conversation) == "In: a\nOut: b</s>In: c\nOut:"
    conversation[1] = ("assistant", " \n ")
    assert render("pure", conversation) == "In: a\nOut:  </s>In: c\nOut:"


@pytest.mark.parametrize("name", ["pure", "mistral-instruct"])
def test_a_prompt_without_a_place_for_it_has_the_system_message_before_the_question(name):
    prompt = PROMPT_FORMATS[name]
    text = render(name, [("system", "Be brief."), ("user", "a")])
    assert text == f"{prompt.before}Be brief.\na{prompt.after}"


def test_a_later_system_message_goes_before_the_next_question():
    conversation = [("system", "x"), ("system", "y"), ("user", "a"), ("assistant", "b")]
    conversation += [("system", "z"), ("user", "c")]
    expected = "x\ny USER: a ASSISTANT: b</s>USER: z\nc ASSISTANT:"
    assert render("vicuna", conversation) == expected


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_a_blank_system_message_is_none(name):
    assert render(name, [("system", " "), ("user", "a")]) == render(name, [("user", "a")])


def test_templates_are_plain_jinja():
    assert all("BEFORE" not in chat_template(name) for name in PROMPT_FORMATS)
