"""Token ids, prompts and streamed text equal the reference's."""

import copy
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_vlm.models.moxin.tokenization_moxin import (
    MoxinDetokenizer,
    check_tokenizer,
    load_tokenizer,
)
from support import GOLDENS, HF_CHECKPOINT

TOKENIZER = load_tokenizer(HF_CHECKPOINT, own_template=False, prompt_format="pure")
VOCAB_SIZE = 576


def prompt(*turns: tuple[str, str], **kwargs) -> str:
    conversation = [{"role": role, "content": content} for role, content in turns]
    kwargs = {"tokenize": False, "add_generation_prompt": True, **kwargs}
    return TOKENIZER.apply_chat_template(conversation, **kwargs)


@pytest.mark.parametrize("case", GOLDENS["tokenize"], ids=lambda case: repr(case["text"]))
def test_ids_equal_the_reference_tokenizer(case):
    assert TOKENIZER(case["text"])["input_ids"] == case["ids"]
    plain = TOKENIZER(case["text"], add_special_tokens=False)["input_ids"]
    assert plain == case["ids_no_special"]


@pytest.mark.parametrize("case", GOLDENS["prompts"], ids=lambda case: case["message"])
def test_a_message_becomes_the_reference_prompt(case):
    text = prompt(("user", case["message"]))
    assert text == case["prompt"]
    assert TOKENIZER(text)["input_ids"] == case["input_ids"]


def test_later_turns_follow_the_answer_directly():
    text = prompt(("user", "a"), ("assistant", "answer"), ("user", " b "))
    assert text == "In: a\nOut: answer</s>In: b\nOut:"


def test_an_empty_answer_is_a_space_as_in_the_reference():
    assert prompt(("user", "a"), ("assistant", ""), ("user", "b")) == "In: a\nOut:  </s>In: b\nOut:"


def test_a_conversation_that_ends_with_an_answer_is_complete():
    text = prompt(("user", "a"), ("assistant", "b"), add_generation_prompt=False)
    assert text == "In: a\nOut: b</s>"


def test_a_system_message_is_a_line_before_the_next_user_message():
    text = prompt(("system", "Be brief. "), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert text == "In: Be brief.\na\nOut: b</s>In: c\nOut:"


def test_user_messages_in_a_row_are_one_message():
    assert prompt(("user", "What"), ("user", "is"), ("user", "this")) == "In: What is this\nOut:"


def test_content_parts_are_joined_and_pictures_leave_no_trace():
    parts = [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    conversation = [{"role": "user", "content": parts}]
    text = TOKENIZER.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert text == "In: a b\nOut:"


def test_an_unknown_role_is_refused_by_name():
    with pytest.raises(Exception, match="no role 'tool'; it knows system, user and assistant"):
        prompt(("user", "a"), ("tool", "b"))


def test_a_template_of_the_language_model_does_not_replace_moxins(tmp_path):
    shutil.copytree(HF_CHECKPOINT, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("{{ '[INST]' }}", encoding="utf-8")
    turn = [{"role": "user", "content": "a"}]
    for own, expected in ((False, "In: a\nOut:"), (True, "[INST]")):
        tokenizer = load_tokenizer(tmp_path, own_template=own, prompt_format="pure")
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        assert text == expected


def test_missing_tokenizer_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No tokenizer\.json in .*; copy"):
        load_tokenizer(tmp_path, own_template=False, prompt_format="pure")


def stream(ids: list[int]) -> tuple[MoxinDetokenizer, list[str]]:
    detokenizer = copy.copy(MoxinDetokenizer(TOKENIZER))
    detokenizer.reset()
    segments = []
    for token in ids:
        detokenizer.add_token(token)
        segments.append(detokenizer.last_segment)
    detokenizer.finalize()
    return detokenizer, [*segments, detokenizer.last_segment]


@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=60))
@settings(max_examples=400)
def test_streamed_text_equals_decoding_all_tokens_at_once(ids):
    detokenizer, segments = stream(ids)
    expected = TOKENIZER.decode(ids, skip_special_tokens=True)
    assert detokenizer.text == expected
    assert "".join(segments) == expected


def test_text_appears_token_by_token():
    ids = TOKENIZER("What is shown?", add_special_tokens=False)["input_ids"]
    _, segments = stream(ids)
    assert all(segments[:-1])


class Pieces:
    """A tokenizer whose tokens are the given pieces."""

    all_special_ids = ()

    def __init__(self, *pieces: str):
        self.pieces = pieces

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.pieces[token]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[token] for token in ids)


@pytest.mark.parametrize(
    ("piece", "shown"), [("<0xE4>", ""), ("<0x", "<0x"), ("<0xE4", "<0xE4"), ("E4>", "E4>")]
)
def test_only_whole_bytes_wait_for_the_next_token(piece, shown):
    detokenizer = MoxinDetokenizer(Pieces(piece, "b"))
    detokenizer.add_token(0)
    assert detokenizer.last_segment == shown
    detokenizer.add_token(1)
    assert detokenizer.text == piece + "b"


def test_text_that_ends_in_broken_bytes_is_not_lost():
    broken = TOKENIZER.convert_tokens_to_ids(["▁a", "<0xE4>", "<0xB8>"])
    detokenizer, segments = stream(broken)
    assert detokenizer.text == "".join(segments) == "a\ufffd\ufffd"


def test_special_and_reserved_ids_give_no_text():
    ids = [1, *TOKENIZER.convert_tokens_to_ids(["▁a", "▁p"]), 0, 512, 513, 575, 2]
    assert stream(ids)[0].text == "a p"


def test_a_tokenizer_fits_a_model_with_the_same_special_ids_and_room_above_its_tokens():
    ids = {"bos_token_id": 1, "pad_token_id": 512, "image_token_index": 513}
    check_tokenizer(TOKENIZER, SimpleNamespace(**ids))
    for name, value in (("bos_token_id", 2), ("pad_token_id", 511)):
        with pytest.raises(ValueError, match=f"{name} is {value}, but the tokenizer's is"):
            check_tokenizer(TOKENIZER, SimpleNamespace(**{**ids, name: value}))
    with pytest.raises(ValueError, match="the tokenizer has tokens up to id 512"):
        check_tokenizer(TOKENIZER, SimpleNamespace(**{**ids, "image_token_index": 512}))
