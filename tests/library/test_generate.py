"""``generate``: the reference's tokens, one by one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlx_vlm.models.cache import make_prompt_cache
from support import GOLDENS, MESSAGES, image_path

from mlx_vlm_moxin import generate, stream_text
from mlx_vlm_moxin.library.generate import _stripped

NEW_TOKENS = GOLDENS["new_tokens"]


@pytest.mark.parametrize("index", range(len(MESSAGES)))
@pytest.mark.parametrize("name", ["photo", "rgba"])
def test_greedy_tokens_are_the_references(model, processor, name, index):
    golden = GOLDENS["generate"]["hf"][name][index]
    tokens = generate(
        model, processor, MESSAGES[index], image_path(name), max_tokens=NEW_TOKENS, temperature=0
    )
    assert [*tokens] == [t for t in golden["tokens"] if t != GOLDENS["eos_token_id"]]


def test_tokens_come_one_by_one(model, processor):
    tokens = generate(model, processor, MESSAGES[0], image_path("photo"))
    assert isinstance(tokens, Iterator)
    assert [next(tokens), next(tokens)] == GOLDENS["generate"]["hf"]["photo"][0]["tokens"][:2]


def test_no_temperature_is_greedy_for_a_checkpoint_that_says_nothing(model, processor):
    golden = GOLDENS["generate"]["hf"]["photo"][0]["tokens"]
    assert [*generate(model, processor, MESSAGES[0], image_path("photo"), max_tokens=5)] == (
        golden[:5]
    )


def test_end_tokens_of_an_earlier_call_are_forgotten(model, processor):
    golden = GOLDENS["generate"]["hf"]["photo"][0]["tokens"]
    processor.tokenizer.stopping_criteria.add_eos_token_ids(golden[1])
    tokens = generate(model, processor, MESSAGES[0], image_path("photo"), max_tokens=3)
    assert [*tokens] == golden[:3]


def test_a_temperature_samples_and_a_seed_repeats_it(model, processor):
    def sample(seed: int) -> list[int]:
        options = {"max_tokens": 12, "temperature": 1.0, "seed": seed}
        return [*generate(model, processor, MESSAGES[0], image_path("photo"), **options)]

    assert sample(1) == sample(1) != sample(2)


def test_a_picture_in_memory_gives_what_its_file_gives(model, processor):
    data = Path(image_path("photo")).read_bytes()
    golden = GOLDENS["generate"]["hf"]["photo"][0]["tokens"]
    assert [*generate(model, processor, MESSAGES[0], data, max_tokens=5)] == golden[:5]


def test_a_question_without_a_picture_is_answered(model, processor):
    assert len([*generate(model, processor, MESSAGES[0], max_tokens=4)]) == 4


def test_a_conversation_differs_from_its_last_turn(model, processor):
    conversation = [
        {"role": "user", "content": MESSAGES[0]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": MESSAGES[1]},
    ]
    whole = [*generate(model, processor, conversation, image_path("photo"), max_tokens=8)]
    last = [*generate(model, processor, conversation[2:], image_path("photo"), max_tokens=8)]
    alone = [*generate(model, processor, MESSAGES[1], image_path("photo"), max_tokens=8)]
    assert whole != last == alone


def test_options_of_mlx_vlms_loop_reach_it(model, processor):
    cache = make_prompt_cache(model.language_model)
    tokens = generate(
        model, processor, MESSAGES[0], image_path("photo"), max_tokens=3, prompt_cache=cache
    )
    assert len([*tokens]) == 3
    assert cache[0].offset > len(GOLDENS["prompts"][0]["input_ids"]) + GOLDENS["num_patches"]


def test_a_picture_that_cannot_be_used_is_refused_before_the_first_token(model, processor):
    with pytest.raises(ValueError, match="Failed to load image from the given bytes"):
        generate(model, processor, MESSAGES[0], b"no picture")


@pytest.mark.parametrize("index", range(len(MESSAGES)))
def test_the_pieces_of_text_join_to_what_mlx_vlm_returns(model, processor, index):
    golden = GOLDENS["generate"]["hf"]["photo"][index]
    settings = {"max_tokens": NEW_TOKENS, "temperature": 0}
    pieces = [*stream_text(model, processor, MESSAGES[index], image_path("photo"), **settings)]
    assert "".join(pieces) == golden["text"].strip()
    assert all(pieces)
    assert len(pieces) > 1


def test_text_comes_piece_by_piece(model, processor):
    pieces = stream_text(model, processor, MESSAGES[0], image_path("photo"))
    assert isinstance(pieces, Iterator)
    text = GOLDENS["generate"]["hf"]["photo"][0]["text"].strip()
    assert text.startswith(next(pieces))


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ([" ", "\n a", " ", "", "b\n", "\n"], ["a", " b"]),
        (["a ", "b", " c "], ["a", " b", " c"]),
        ([" ", ""], []),
    ],
)
def test_space_around_the_answer_is_left_out_and_space_within_is_kept(pieces, shown):
    assert [*_stripped(iter(pieces))] == shown


@pytest.mark.parametrize("stream", [generate, stream_text])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature=-1 cannot be used: it must be at least 0"),
        ({"top_k": 576}, "top_k=576 cannot be used: it must be from 0 to 575"),
        ({"kv_bits": 8}, "kv_bits=8 cannot be used: MLX quantises groups"),
        ({"max_tokens": 2, "resize_shape": (0, 1)}, "at least 1 pixel"),
    ],
)
def test_settings_are_checked_before_anything_is_computed(
    model, processor, stream, settings, message
):
    with pytest.raises(ValueError, match=message):
        stream(model, processor, MESSAGES[0], **settings)
