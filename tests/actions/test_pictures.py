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
