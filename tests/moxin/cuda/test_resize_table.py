"""The integer weights of a resize equal Pillow's, shown on the bytes that they give."""

import numpy as np
import pytest
from cuda_support import picture
from mlx_vlm.models.moxin.cuda.resize_table import BITS, resize_table
from mlx_vlm.models.moxin.resize import resize_naive


def resized_by_table(pixels: np.ndarray, side: int) -> np.ndarray:
    """``[H, W, 3]`` to ``[side, side, 3]`` by the arithmetic of the kernels."""
    for axis in (1, 0):
        source = np.moveaxis(pixels, axis, 0).astype(np.int64)
        starts, counts, *weights = resize_table(len(source), side, 0, side)
        sums = np.full((side, *source.shape[1:]), 1 << (BITS - 1))
        for tap, weight in enumerate(weights):
            assert not weight[tap >= counts].any()
            at = np.minimum(starts + tap, len(source) - 1)
            sums += source[at] * weight[:, None, None]
        # The kernels add up in 32 bits.
        assert np.abs(sums).max() < 2**31
        pixels = np.moveaxis(np.clip(sums >> BITS, 0, 255).astype(np.uint8), 0, axis)
    return pixels


@pytest.mark.parametrize("longest", [4, 60, 700])
@pytest.mark.parametrize("extremes", [False, True])
@pytest.mark.parametrize("side", [1, 14, 98, 224, 336])
def test_the_table_gives_pillows_bytes(side, extremes, longest):
    sizes = np.random.default_rng(side).integers(1, longest, (6, 2), endpoint=True)
    for seed, (width, height) in enumerate([*sizes, (1, longest), (longest, 1)]):
        image = picture(width, height, seed, extremes)
        expected = np.asarray(resize_naive(image, side))
        np.testing.assert_array_equal(resized_by_table(np.asarray(image), side), expected)


def test_a_part_of_a_table_is_that_of_the_whole():
    whole, part = resize_table(100, 40, 0, 40), resize_table(100, 40, 11, 20)
    np.testing.assert_array_equal(part, whole[:, 11:31])
