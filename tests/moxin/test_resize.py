"""Resizing: the reference's pixels also with threads, and little memory for every shape."""

import resource

import numpy as np
import pytest
from mlx_vlm.models.moxin import resize
from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from mlx_vlm.models.moxin.image_settings import RESIZE_STRATEGIES
from mlx_vlm.models.moxin.picture_sources import PictureError
from PIL import Image


@pytest.mark.parametrize("strategy", RESIZE_STRATEGIES)
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (301, 2), (2, 301), (20, 20)])
def test_strips_of_a_large_picture_give_the_same_pixels(strategy, size, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    processor = MoxinImageProcessor(28, strategy)
    whole = processor(noise)
    strips = count_strips(monkeypatch)
    monkeypatch.setattr(resize, "MIN_PIXELS", 200)
    monkeypatch.setattr(resize, "STRIP_PIXELS", 100)
    monkeypatch.setattr(resize.os, "cpu_count", lambda: 3)
    np.testing.assert_array_equal(processor(noise), whole)
    assert max(strips) > 1


def count_strips(monkeypatch):
    """The numbers of strips of all passes from now on."""
    counts, count = [], resize._count_strips
    monkeypatch.setattr(
        resize, "_count_strips", lambda *arguments: counts.append(count(*arguments)) or counts[-1]
    )
    return counts


MIN, STRIP = resize.MIN_PIXELS, resize.STRIP_PIXELS


@pytest.mark.parametrize(
    ("pixels", "height", "cores", "strips"),
    [
        (MIN - 8, 8, 8, 1),
        (MIN, 8, 8, 8),
        (MIN, 16, 2, MIN // STRIP),
        (MIN, 16, None, 1),
        (MIN, 2, 2, 2),
        (MIN, 1, 8, 1),
        (40 * STRIP, 1024, 16, 40),
    ],
)
def test_a_large_picture_is_cut_into_strips_of_at_least_a_row(
    pixels, height, cores, strips, monkeypatch
):
    monkeypatch.setattr(resize.os, "cpu_count", lambda: cores)
    counts = count_strips(monkeypatch)
    picture = Image.linear_gradient("L").resize((pixels // height, height)).convert("RGB")
    resized = resize.resize_naive(picture, 14)
    assert counts == [strips, 1]
    monkeypatch.setattr(resize, "MAX_THREADS", 1)
    assert resized.tobytes() == resize.resize_naive(picture, 14).tobytes()


def test_strips_share_no_more_weights_than_fit_into_the_extra_memory(monkeypatch):
    monkeypatch.setattr(resize.os, "cpu_count", lambda: 8)
    longest = resize._longest_side() // 8
    assert resize._count_strips((longest, 80), 0) > 1
    assert resize._count_strips((longest + 1, 80), 0) == 1
    assert resize._count_strips((longest + 1, 80), 1) > 1


def test_a_forked_process_starts_new_threads_for_resizing(monkeypatch):
    monkeypatch.setattr(resize.os, "cpu_count", lambda: 3)
    picture = Image.effect_noise((2048, 1024), 50).convert("RGB")
    expected = resize.resize_naive(picture, 224).tobytes()
    monkeypatch.setattr(resize.os, "getpid", lambda: -1)
    assert resize.resize_naive(picture, 224).tobytes() == expected
    assert resize._pool(-1) is not resize._pool(0)


NOISE = np.random.default_rng(1)


@pytest.mark.parametrize("strategy", RESIZE_STRATEGIES)
@pytest.mark.parametrize("size", [(5, 900), (900, 5), (40, 3000), (3000, 40)])
def test_in_little_memory_the_pixels_are_the_same_up_to_one_level(strategy, size, monkeypatch):
    # Far enough from black and white that the filter does not exceed them.
    noise = NOISE.integers(64, 192, (*size[::-1], 3), dtype=np.uint8)
    processor = MoxinImageProcessor(28, strategy, image_mean=[[0, 0, 0]], image_std=[[1, 1, 1]])
    usual = processor(noise)
    monkeypatch.setattr(resize, "MAX_EXTRA_PIXELS", 1000)
    assert np.abs(processor(noise) - usual).max() <= 1.01 / 255


def test_a_letterboxed_picture_is_exact_in_little_memory(monkeypatch):
    noise = Image.fromarray(NOISE.integers(0, 256, (2000, 31, 3), dtype=np.uint8))
    usual = resize.letterbox(noise, 28, (1, 2, 3))
    monkeypatch.setattr(resize, "MAX_EXTRA_PIXELS", 2**15)
    assert resize.letterbox(noise, 28, (1, 2, 3)).tobytes() == usual.tobytes()


@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop"])
@pytest.mark.parametrize("size", [(1, 10**7), (10**7, 1)])
def test_ten_million_pixels_in_a_row_take_little_memory(strategy, size):
    picture = Image.new("RGB", size, (10, 20, 30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    square = MoxinImageProcessor(224, strategy, [[0, 0, 0]], [[1, 1, 1]])(picture)
    assert np.unique(np.rint(square[0, 0] * 255)).tolist() == [10]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 150 * 1024  # kilobytes


@pytest.mark.parametrize("size", [(1, 10**7), (10**7, 1)])
def test_a_square_beyond_the_limit_is_not_made(size):
    with pytest.raises(PictureError, match=r"letterboxed: its square .* limit of 178956970"):
        MoxinImageProcessor(28, "letterbox")(Image.new("RGB", size))
