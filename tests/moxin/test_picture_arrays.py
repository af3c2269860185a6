"""Arrays as pictures: grey, floats, bfloat16."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models.moxin.picture import read_picture
from picture_forms import GREY, refusal
from PIL import Image


@pytest.mark.parametrize(
    "grey",
    [GREY, GREY[:, :, None], GREY[None], np.dstack([GREY, GREY]), GREY / 255, mx.array(GREY)],
    ids=["[H, W]", "[H, W, 1]", "[1, H, W]", "[H, W, 2]", "floats", "mx.array"],
)
def test_grey_arrays_are_converted_to_rgb(grey):
    expected = np.asarray(Image.fromarray(GREY).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_picture(grey)), expected)


@pytest.mark.parametrize(("low", "high"), [(0, 1.01), (0, 1.99), (-0.01, 1)])
def test_floats_beyond_white_or_black_are_refused(low, high):
    assert f"got values from {low:g} to {high:g}" in refusal(np.array([[low, high]]))


def test_bfloat16_arrays_round_to_the_nearest_level():
    half = mx.full((4, 5, 3), 0.5, mx.bfloat16)
    assert np.asarray(read_picture(half)).tolist() == np.full((4, 5, 3), 128).tolist()
