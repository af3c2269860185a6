"""Pictures, compared with PNGs made by TensorFlow in the published evaluation code."""

import numpy as np
import pytest
from PIL import Image
from support import IMAGES, REFERENCE

from mlx_vlm_moxin.actions.jpeg import round_trip
from mlx_vlm_moxin.actions.pictures import POLICY_SIZE, center_crop, resize_for_policy

EXPECTED = REFERENCE / "actions" / "images"


def _picture(name: str) -> Image.Image:
    return Image.open(IMAGES / f"{name}.png").convert("RGB")


def _difference(image: Image.Image, expected: str) -> np.ndarray:
    return np.abs(
        np.asarray(image, int) - np.asarray(Image.open(EXPECTED / f"{expected}.png"), int)
    )


@pytest.mark.parametrize("name", ["photo", "tall"])
def test_center_crop_equals_tensorflow(name):
    assert _difference(center_crop(_picture(name)), f"{name}.crop").max() == 0


@pytest.mark.parametrize("name", ["photo", "gray"])
def test_resizing_for_the_policy_equals_tensorflow(name):
    difference = _difference(resize_for_policy(_picture(name)), f"{name}.policy224")
    # Sums that end in .5 may be rounded the other way where a sine differs in its last bit.
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 10


def test_center_crop_of_one_colour_stays_that_colour():
    image = Image.new("RGB", (50, 40), (7, 128, 250))
    cropped = np.asarray(center_crop(image))
    assert cropped.shape == (POLICY_SIZE, POLICY_SIZE, 3)
    assert (cropped == (7, 128, 250)).all()


@pytest.mark.parametrize(
    "size", [(1, 1), (3, 5), (POLICY_SIZE, POLICY_SIZE), (640, 480), (90, 700)]
)
def test_center_crop_of_noise_is_linear_to_the_last_bit(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    expected, one = pixels * np.float32(1 / 255), np.float32(1)
    side = np.sqrt(np.float32(0.9))
    start = (one - side) / np.float32(2)
    for axis in (1, 0):
        last = np.float32(expected.shape[axis] - 1)
        step = (start + side - start) * last / np.float32(POLICY_SIZE - 1)
        at = start * last + np.arange(POLICY_SIZE, dtype=np.float32) * step
        left, right = (expected.take(f(at).astype(int), axis) for f in (np.floor, np.ceil))
        expected = left + (right - left) * np.expand_dims(at - np.floor(at), (1 - axis, 2))
    expected = (np.clip(expected, 0, 1) * np.float32(255.5)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(center_crop(Image.fromarray(pixels))), expected)


@pytest.mark.parametrize("length", [30, 59, 116, 231, 640])
def test_center_crop_can_keep_the_whole_picture(length):
    image = Image.fromarray(np.full((length, length, 3), 9, np.uint8))
    assert (np.asarray(center_crop(image, area=1.0)) == 9).all()


def test_center_crop_cuts_the_same_share_off_every_side():
    ramp = np.tile(np.linspace(0, 255, 1000).astype(np.uint8)[:, None, None], (1, 1000, 3))
    cropped = np.asarray(center_crop(Image.fromarray(ramp)), float)[..., 0]
    outside = 255 * (1 - np.sqrt(0.9)) / 2
    assert cropped[0].mean() == pytest.approx(outside, abs=1)
    assert cropped[-1].mean() == pytest.approx(255 - outside, abs=1)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (17, 3), (16, 16), (33, 31)])
def test_jpeg_keeps_sizes_that_are_no_multiples_of_its_blocks(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    result = round_trip(pixels)
    assert result.shape == pixels.shape
    assert result.dtype == np.uint8


def test_jpeg_changes_smooth_pictures_little():
    pixels = np.asarray(Image.linear_gradient("L").convert("RGB"))
    assert np.abs(round_trip(pixels).astype(int) - pixels).max() <= 6
