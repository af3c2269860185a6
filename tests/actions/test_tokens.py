"""Action tokens: the values of OpenVLA's tokenizer, including its edge cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.text_config import TextConfig

from mlx_vlm_moxin.actions.tokens import ActionTokenizer

TOKENIZER = ActionTokenizer(32000)


@pytest.mark.parametrize(
    ("token", "value"),
    [
        (31999, -254 / 255),
        (31998, -252 / 255),
        (31872, 0.0),
        (31745, 254 / 255),
        # 256 points make 255 intervals, so the lowest id also means the last interval.
        (31744, 254 / 255),
    ],
)
def test_ids_decode_to_the_centres_of_their_bins(token, value):
    assert TOKENIZER.decode(np.array([token])) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("token", "nearest"), [(0, 31744), (2, 31744), (32000, 31999), (32063, 31999)]
)
def test_ids_of_no_action_count_as_the_nearest(token, nearest):
    assert TOKENIZER.decode(np.array(token)) == TOKENIZER.decode(np.array(nearest))


@pytest.mark.parametrize(
    ("value", "token"), [(-1.0, 31999), (-5.0, 31999), (0.0, 31872), (0.999, 31745), (1.0, 31744)]
)
def test_values_are_encoded_as_openvla_does(value, token):
    assert TOKENIZER.encode(np.array([value])) == token


@given(st.floats(-1, 1))
def test_decoding_what_was_encoded_is_at_most_half_a_bin_off(value):
    assert abs(TOKENIZER.decode(TOKENIZER.encode(np.array(value))) - value) <= 1 / 255 + 1e-12


@given(st.integers(31745, 31999))
def test_encoding_what_was_decoded_gives_the_same_id(token):
    assert TOKENIZER.encode(TOKENIZER.decode(np.array(token))) == token


def test_shapes_are_kept():
    assert TOKENIZER.decode(TOKENIZER.encode(np.zeros((8, 7)))).shape == (8, 7)
    assert len(TOKENIZER.ids) == 256
    assert TOKENIZER.ids[0] == 31744


@pytest.mark.parametrize("change", [{"n_action_bins": 40_000}, {"pad_to_multiple_of": 40_000}])
def test_a_vocabulary_with_too_few_ids_is_refused(change):
    config = ModelConfig(text_config=TextConfig(vocab_size=32064), **change)
    with pytest.raises(ValueError, match=r"has no .* for actions"):
        ActionTokenizer.of(config)


def test_a_single_bin_is_refused():
    with pytest.raises(ValueError, match="n_action_bins is 1"):
        ModelConfig(text_config=TextConfig(vocab_size=32064), n_action_bins=1)
