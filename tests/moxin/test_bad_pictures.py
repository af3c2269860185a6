"""Damaged files and objects that are no pictures are refused in one sentence."""

import base64
import io

import mlx.core as mx
import numpy as np
import pytest
from damaged_pictures import damaged_pictures, encoded, flipped
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_vlm.models.moxin.picture import bounded, read_picture
from mlx_vlm.models.moxin.picture_sources import PictureError
from picture_forms import BASE64, PHOTO, refusal
from PIL import Image


def test_a_truncated_file_is_refused_when_it_is_opened(tmp_path):
    path = tmp_path / "picture.jpg"
    Image.new("RGB", (200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match="truncated"):
        read_picture(path)
    with Image.open(path) as image, pytest.raises(ValueError, match="truncated"):
        read_picture(image)


BAD = damaged_pictures()


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_refused_in_one_sentence(name, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(BAD[name])
    uri = f"data:image/png;base64,{base64.b64encode(BAD[name]).decode()}"
    for source, called in ((path, str(tmp_path)), (BAD[name], "the given bytes"), (uri, "a data")):
        message = refusal(source)
        assert message.startswith(("Failed to load image from", "The picture is empty"))
        assert called[:20] in message or "empty" in message


@settings(max_examples=60)
@given(position=st.integers(0, 10**6), kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "PPM"]))
def test_a_flipped_bit_gives_a_picture_or_a_sentence_and_in_a_png_no_other_picture(position, kind):
    data = encoded(kind)
    try:
        image = read_picture(flipped(data, position % len(data)))
    except PictureError:
        return
    if kind == "PNG":
        assert image.tobytes() == read_picture(data).tobytes()


@settings(max_examples=40)
@given(length=st.integers(0, 10**6), kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"]))
def test_a_file_cut_short_is_refused(length, kind):
    data = encoded(kind)
    refusal(data[: length % (len(data) - 16)])


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (f"data:image/png;base64,{BASE64[:-1]}", "no multiple of 4"),
        (f"data:image/png;base64,{BASE64[1:]}", "no multiple of 4"),
        (f"data:image/png;base64,{BASE64[:400]}!{BASE64[401:]}", "damaged"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,", "a data URI (image/png): it is empty"),
        ("data:image/svg+xml,<svg/>", "a data URI (image/svg+xml)"),
        ("", "names nothing"),
        ("/no/such.png", "/no/such.png: No such file"),
        ("x" * 5000, "name too long"),
        ("a\0b.png", "null byte"),
        ("~/\ud800.png", "surrogates"),
        ("ftp://example.org/a.png", "ftp:// is no supported kind"),
        ("http://[::1", "Invalid IPv6"),
        ("http://", "names no host"),
        ("http://127.0.0.1:9/x.png", "refused"),
        ("http://127.0.0.1:99999/x.png", "Port"),
        (None, "Cannot use NoneType"),
        (7, "Cannot use int"),
        ([PHOTO], "Cannot use list"),
        (object(), "Cannot use object"),
        ({}, "dictionary"),
        ({"bytes": None, "path": None}, "dictionary"),
        ({"bytes": 7}, "Cannot use int"),
        (io.StringIO("hello"), "StringIO: it gives str, not bytes"),
        (np.zeros((4, 4), np.int64), "int64 has no defined black and white"),
        (np.zeros((4, 4), np.complex64), "complex64"),
        (np.full((4, 4), 255.0), "from 255 to 255"),
        (np.full((4, 4), np.nan), "from nan to nan"),
        (np.zeros((7, 4, 5), np.uint8), "[7, 4, 5]"),
        (np.zeros((1, 4, 4, 3), np.uint8), "[1, 4, 4, 3]"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.array(["a"]), "ndarray"),
        (mx.zeros((7,)), "[7]"),
        (Image.new("F", (4, 4)), "floating-point"),
        (Image.new("I", (4, 4)), "32-bit integers"),
        (Image.new("RGB", (0, 4)), "0x4"),
    ],
    # Their text differs between processes.
    ids=lambda value: value[:40] if isinstance(value, str) and value.isprintable() else "",
)
def test_what_is_no_picture_is_named(source, part):
    assert part in refusal(source)


def test_a_message_is_one_printable_line_of_bounded_length():
    assert bounded("a\n\tb\0c\ud800", 50) == "a b c"
    assert len(bounded("x" * 10**6, 120)) <= 120
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert bounded(letters, 26) == letters
    assert bounded(letters, 25) == "abcdefghij ... qrstuvwxyz"
