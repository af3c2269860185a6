"""Pictures to pixels: every kind of picture, constants, geometry, errors."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_vlm.models.moxin.image_processing_moxin import IMAGE_MEAN, MoxinImageProcessor
from mlx_vlm.models.moxin.image_settings import RESIZE_STRATEGIES
from PIL import Image
from support import ARRAYS, HF_CHECKPOINT, TINY, image_path

HF_CONFIG = json.loads((HF_CHECKPOINT / "preprocessor_config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox"])
@pytest.mark.parametrize("name", ["photo", "tall", "tiny"])
def test_native_constants_give_the_native_pixels(strategy, name):
    pixels = MoxinImageProcessor(28, strategy)(image_path(name))[0]
    np.testing.assert_array_equal(pixels, ARRAYS[f"pixels_native/{strategy}/{name}"])


@pytest.mark.parametrize("strategy", RESIZE_STRATEGIES)
@given(width=st.integers(1, 90), height=st.integers(1, 90))
@settings(max_examples=40)
def test_any_size_becomes_the_square(strategy, width, height):
    pixels = MoxinImageProcessor(28, strategy)(Image.new("RGB", (width, height), (9, 99, 199)))
    assert pixels.shape == (1, 6, 28, 28)
    assert pixels.dtype == np.float32
    assert np.isfinite(pixels).all()


@given(colour=st.tuples(*[st.integers(0, 255)] * 3))
@settings(max_examples=30)
def test_a_plain_colour_is_normalised_by_the_formula(colour):
    pixels = MoxinImageProcessor(28)(Image.new("RGB", (40, 30), colour))[0]
    for tower in range(2):
        for channel in range(3):
            expected = (colour[channel] / 255 - IMAGE_MEAN[tower][channel]) / (
                (0.229, 0.224, 0.225)[channel] if tower == 0 else 0.5
            )
            np.testing.assert_allclose(pixels[3 * tower + channel], expected, atol=1e-5)


def test_letterbox_pads_in_the_towers_own_colours():
    processor = MoxinImageProcessor(28, "letterbox")
    assert processor.letterbox_fill == [[123, 116, 103], [127, 127, 127]]
    pixels = processor(Image.new("RGB", (100, 10), (255, 0, 0)))[0]
    corner = pixels[:, 0, 0] * np.ravel(processor.image_std) + np.ravel(processor.image_mean)
    np.testing.assert_allclose(corner * 255, [123, 116, 103, 127, 127, 127], atol=1e-3)


def test_a_picture_is_the_same_from_path_array_and_object():
    path = image_path("photo")
    with Image.open(path) as image:
        sources = [path, image.copy(), np.asarray(image.convert("RGB"))]
    first, *others = (MoxinImageProcessor(28)(source) for source in sources)
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_the_exif_orientation_is_applied_once():
    with Image.open(image_path("tall")) as image:
        upright = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    file = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    processor = MoxinImageProcessor(28)
    np.testing.assert_array_equal(processor(Image.open(file)), processor(upright))


def test_a_batch_equals_its_pictures_one_by_one():
    processor = MoxinImageProcessor.from_dict(HF_CONFIG)
    names = ["photo", "tall", "gray"]
    batch = processor([image_path(name) for name in names])
    for row, name in zip(batch, names):
        np.testing.assert_array_equal(row, processor(image_path(name))[0])


@pytest.mark.parametrize("strategy", RESIZE_STRATEGIES)
def test_a_saved_processor_gives_the_same_pixels(strategy, tmp_path):
    config = HF_CONFIG
    if strategy != "resize-naive":
        path = TINY / f"preprocessor_config.{strategy}.json"
        config = json.loads(path.read_text(encoding="utf-8"))
    processor = MoxinImageProcessor.from_dict(config)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text(encoding="utf-8"))
    again = MoxinImageProcessor.from_dict(saved)
    assert vars(again) == vars(processor)
    assert again.resize_strategy == strategy


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("RGB", (0, 5)), "empty"),
        (np.zeros((4, 4), np.int8), "an array of int8 has no defined black and white"),
        (np.full((4, 4, 3), 2, np.float32), r"floats must lie in \[0, 1\], got values from 2 to 2"),
        (42, "Cannot use int as a picture"),
        ("no/such/file.png", "no/such/file.png"),
        (__file__, "Failed to load image from .*test_image_processing"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(image, reason):
    with pytest.raises(ValueError, match=reason):
        MoxinImageProcessor(28)(image)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"image_resize_strategy": "stretch"},
            "is 'stretch'; allowed: one of resize-naive",
        ),
        ({"interpolations": ["bilinear", "bilinear"]}, "bicubic"),
        ({"input_sizes": [[3, 28, 28], [3, 32, 32]]}, "one square"),
        ({"tvf_normalize_params": [{"mean": [0, 0, 0], "std": [1, 1, 1]}]}, "one normalisation"),
        ({"tvf_resize_params": [{"size": 32}, {"size": 28}]}, "a crop of a larger picture"),
    ],
)
def test_a_preprocessor_config_that_is_not_supported_is_refused(changed, reason):
    with pytest.raises(ValueError, match=reason):
        MoxinImageProcessor.from_dict({**HF_CONFIG, **changed})


def test_a_preprocessor_config_names_what_is_missing():
    config = {key: value for key, value in HF_CONFIG.items() if key != "input_sizes"}
    with pytest.raises(ValueError, match="'input_sizes' missing"):
        MoxinImageProcessor.from_dict(config)
