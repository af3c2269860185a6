"""The picture helpers give the reference's pixels, and refuse what is no picture."""

import base64
import functools
import http.server
import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import ARRAYS, IMAGES, image_path

from mlx_vlm_moxin import normalize_dino, normalize_siglip, preprocess, to_pixel_values

SIZE = 28


@pytest.mark.parametrize("name", ["photo", "tall", "tiny"])
def test_the_helpers_together_give_the_references_pixels(name):
    pixels = to_pixel_values(preprocess(image_path(name), SIZE))
    expected = ARRAYS[f"pixels_native/resize-naive/{name}"]
    assert pixels.shape == (1, 6, SIZE, SIZE)
    np.testing.assert_allclose(np.array(pixels[0]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("normalize", "first"), [(normalize_dino, 0), (normalize_siglip, 3)])
def test_each_tower_has_its_own_normalisation(normalize, first):
    pixels = normalize(preprocess(image_path("photo"), SIZE))
    assert pixels.dtype == mx.float32
    expected = ARRAYS["pixels_native/resize-naive/photo"][first : first + 3]
    np.testing.assert_allclose(np.array(pixels[0]).transpose(2, 0, 1), expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def url():
    """Address of the reference pictures on a local server."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(IMAGES))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_picture_can_be_given_in_every_form(url):
    path = Path(image_path("photo"))
    data = path.read_bytes()
    array = np.asarray(Image.open(path).convert("RGB"))
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    expected = preprocess(str(path))
    for form in (path, data, uri, f"{url}/photo.png", Image.open(path), array, mx.array(array)):
        assert mx.array_equal(preprocess(form), expected)


def test_preprocessed_pictures_have_the_published_models_size_and_lie_in_zero_to_one():
    pixels = preprocess(image_path("rgba"))
    assert (pixels.shape, pixels.dtype) == ((1, 224, 224, 3), mx.float32)
    assert 0 <= pixels.min().item() < pixels.max().item() <= 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"not a picture", "Failed to load image from the given bytes"),
        (b"", "Failed to load image from the given bytes"),
        (Path(image_path("photo")).read_bytes()[:5000], "the given bytes: .*truncated"),
        ("no.png", r"no\.png"),
        (np.zeros((4, 4, 3), np.int32), "int32 has no defined black and white"),
        (mx.zeros((5, 4, 7), mx.uint8), r"got \[5, 4, 7\]"),
        (7, "Cannot use int as a picture"),
        (Image.new("RGB", (0, 4)), "empty"),
    ],
)
def test_what_is_no_picture_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        preprocess(image)


def test_a_picture_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"from the given bytes: .*decompression bomb"):
        preprocess(Path(image_path("photo")).read_bytes())


@pytest.mark.parametrize("normalize", [normalize_dino, normalize_siglip, to_pixel_values])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (mx.zeros((4, 4, 3)), r"shape \[B, H, W, 3\], got \[4, 4, 3\]"),
        (mx.zeros((1, 3, 4, 4)), r"got \[1, 3, 4, 4\]"),
        (mx.zeros((0, 4, 4, 3)), r"got \[0, 4, 4, 3\]"),
        (mx.zeros((1, 4, 4, 3), mx.uint8), r"got uint8 \(bytes are divided by 255"),
        (mx.zeros((1, 4, 4, 3), mx.bfloat16), "bfloat16"),
        (np.zeros((1, 4, 4, 3)), "float64"),
        (mx.full((1, 4, 4, 3), 255.0), "values from 255 to 255"),
        (mx.full((1, 4, 4, 3), -0.1), "values from -0.1"),
        (mx.full((1, 4, 4, 3), mx.nan), "values from nan"),
        ([[[[0.0, 0.0, 0.0]]]], "must be an array, got list"),
    ],
)
def test_arrays_that_are_no_pixels_are_refused(normalize, images, message):
    with pytest.raises(ValueError, match=message):
        normalize(images)


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.floats(0, 1, width=32),
    st.sampled_from([normalize_dino, normalize_siglip]),
)
def test_shape_is_kept_and_equal_pixels_stay_equal(batch, height, width, value, normalize):
    images = mx.full((batch, height, width, 3), value)
    pixels = normalize(images)
    assert pixels.shape == images.shape
    assert mx.array_equal(pixels, mx.broadcast_to(pixels[:1, :1, :1], pixels.shape))


def test_numpy_and_mlx_arrays_give_the_same():
    images = preprocess(image_path("tall"), SIZE)
    assert mx.array_equal(to_pixel_values(np.array(images)), to_pixel_values(images))
