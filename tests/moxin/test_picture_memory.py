"""The memory of a Pillow picture, with and without a copy."""

import numpy as np
import pytest
from mlx_vlm.models.moxin.picture_memory import have_equal_pixels, pixels_of
from PIL import Image


def picture(width, height):
    shape = height, width, 3
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


@pytest.fixture(params=["one block", "several blocks", "without Arrow"])
def image(request, monkeypatch):
    if request.param == "several blocks":
        size = Image.core.get_block_size()
        Image.core.set_block_size(4096)
        image = picture(130, 50)
        Image.core.set_block_size(size)
        return image
    if request.param == "without Arrow":
        monkeypatch.delattr(Image.Image, "__arrow_c_array__", raising=False)
    return picture(33, 21)


def test_the_pixels_are_those_of_the_picture(image):
    channels = pixels_of(image).view(np.uint8).reshape(image.height, image.width, 4)[..., :3]
    np.testing.assert_array_equal(channels, np.asarray(image))


def test_the_memory_outlives_the_picture():
    image = picture(33, 21)
    expected, pixels = np.array(pixels_of(image)), pixels_of(image)
    image.im = None
    del image
    picture(33, 21)
    np.testing.assert_array_equal(pixels, expected)


def test_pictures_are_equal_if_all_pixels_are(image):
    assert have_equal_pixels(image, image.copy())
    for place in ((0, 0), (image.width - 1, image.height - 1)):
        changed = image.copy()
        red, green, blue = changed.getpixel(place)
        changed.putpixel(place, (red, green, blue ^ 1))
        assert not have_equal_pixels(image, changed)
    assert not have_equal_pixels(image, image.crop((0, 0, image.width, image.height - 1)))
