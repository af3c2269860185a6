"""Reading a picture: all forms give the same pixels, and bad input gives one sentence."""

import base64
import io
import os
import pathlib
import sys
import threading
from urllib.parse import quote

import mlx.core as mx
import numpy as np
import pytest
from damaged_pictures import damaged_pictures, encoded, flipped
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_vlm.models.moxin import picture_download
from mlx_vlm.models.moxin.picture import bounded, read_picture
from mlx_vlm.models.moxin.picture_sources import PictureError, PictureLimits
from picture_server import picture_server
from PIL import Image
from support import image_path

PHOTO = pathlib.Path(image_path("photo"))
DATA = PHOTO.read_bytes()
BASE64 = base64.b64encode(DATA).decode()
PIXELS = np.asarray(Image.open(PHOTO).convert("RGB"))
GREY = np.asarray(Image.open(PHOTO).convert("L"))
MAX_MESSAGE = 500


@pytest.fixture(scope="module")
def web():
    with picture_server() as server:
        yield server


def refusal(source, **limits) -> str:
    """The message of the error for ``source``."""
    with pytest.raises(PictureError) as caught:
        read_picture(source, PictureLimits(**limits))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= MAX_MESSAGE
    return message


FORMS = {
    "path": str(PHOTO),
    "Path": PHOTO,
    "file URL": PHOTO.as_uri(),
    "spaces around": f" {PHOTO}\n",
    "PIL": Image.open(PHOTO),
    "bytes": DATA,
    "bytearray": bytearray(DATA),
    "memoryview": memoryview(DATA),
    "BytesIO": io.BytesIO(DATA),
    "bytes of a data set": {"bytes": DATA, "path": None},
    "path of a data set": {"bytes": None, "path": str(PHOTO)},
    "bytes win": {"bytes": DATA, "path": "/no/such.png"},
    "data URI": f"data:image/png;base64,{BASE64}",
    "data URI without a type": f"data:;base64,{BASE64}",
    "data URI of a general type": f"data:application/octet-stream;base64,{BASE64}",
    "data URI in capitals": f"DATA:image/png;BASE64,{BASE64}",
    "data URI with a parameter": f"data:image/png;name=a;base64,{BASE64}",
    "data URI in lines": f"data:image/png;base64,{BASE64[:76]}\r\n{BASE64[76:]}",
    "data URI, URL-safe": "data:;base64," + base64.urlsafe_b64encode(DATA).decode(),
    "data URI, escaped base64": "data:image/png;base64," + quote(BASE64),
    "data URI, percent-encoded": "data:image/png," + quote(DATA),
    "array [H, W, 3]": PIXELS,
    "array [3, H, W]": PIXELS.transpose(2, 0, 1),
    "array [H, W, 4]": np.dstack([PIXELS, GREY]),
    "array [4, H, W]": np.dstack([PIXELS, GREY]).transpose(2, 0, 1),
    "floats": PIXELS / 255,
    "float32": np.float32(PIXELS) / 255,
    "float16": (np.float32(PIXELS) / 255).astype(np.float16),
    "uint16": np.uint16(PIXELS) * 257,
    "a view": np.repeat(PIXELS, 2, axis=0)[::2],
    "mx.array": mx.array(PIXELS),
    "mx.array [3, H, W]": mx.array(PIXELS).transpose(2, 0, 1),
    "mx float32": mx.array(np.float32(PIXELS) / 255),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_picture_gives_the_same_pixels(form):
    image = read_picture(FORMS[form])
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("orientation", "stored_as"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
        (9, None),  # no orientation: not turned
    ],
)
def test_every_orientation_is_turned_upright(orientation, stored_as, kind, tmp_path):
    path = tmp_path / "picture"
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(image_path("photo")) as image:
        stored = image.convert("RGB")
    if stored_as is not None:
        stored = stored.transpose(stored_as)
    stored.save(path, kind, exif=exif)
    with Image.open(path) as image:
        decoded = image.convert("RGB")
    inverse = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270}
    inverse[Image.Transpose.ROTATE_270] = Image.Transpose.ROTATE_90
    if stored_as is not None:
        decoded = decoded.transpose(inverse.get(stored_as, stored_as))
    assert read_picture(path).tobytes() == decoded.tobytes()
    with Image.open(path) as image:
        assert read_picture(image).tobytes() == decoded.tobytes()


def test_a_picture_in_rgb_is_not_copied_and_never_changed():
    picture = Image.new("RGB", (5, 4), (1, 2, 3))
    assert read_picture(picture) is picture
    exif = picture.getexif()
    exif[0x0112] = 6
    assert read_picture(picture).size == (4, 5)
    assert picture.size == (5, 4)
    assert picture.getexif()[0x0112] == 6


def test_a_truncated_file_is_refused_when_it_is_opened(tmp_path):
    path = tmp_path / "picture.jpg"
    Image.new("RGB", (200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match="truncated"):
        read_picture(path)
    with Image.open(path) as image, pytest.raises(ValueError, match="truncated"):
        read_picture(image)


def test_a_file_object_is_read_from_its_beginning_as_often_as_it_is_given():
    file = io.BytesIO(DATA)
    file.seek(5)
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(read_picture(file)), PIXELS)
    with PHOTO.open("rb") as file:
        np.testing.assert_array_equal(np.asarray(read_picture(file)), PIXELS)


class OnlyRead:
    """A stream that cannot be rewound, such as a socket's."""

    def __init__(self, data: bytes):
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


def test_a_stream_that_cannot_be_rewound_is_read_once():
    np.testing.assert_array_equal(np.asarray(read_picture(OnlyRead(DATA))), PIXELS)
    assert "empty" in refusal(OnlyRead(b""))


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


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_grey_looks_like_its_8_bit_twin(kind):
    twin = np.asarray(read_picture(Image.fromarray(GREY)))
    deep = Image.fromarray(np.uint16(GREY) * 257)
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    np.testing.assert_array_equal(np.asarray(read_picture(encoded(kind, deep, **options))), twin)
    np.testing.assert_array_equal(np.asarray(read_picture(deep)), twin)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
def test_other_modes_are_converted_as_the_reference_does(mode):
    image = Image.open(PHOTO).convert("RGB")
    image = image.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (4, 4))
    assert read_picture(image).tobytes() == image.convert("RGB").tobytes()


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


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
def test_pipes_devices_and_directories_are_refused_without_waiting(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, pathlib.Path("/dev/zero"), tmp_path):
        message = refusal(path)
        assert "directory" in message or "a device or a pipe" in message


def test_limits_on_pixels_and_bytes_are_exact():
    height, width = GREY.shape
    sized = PictureLimits(max_pixels=height * width, max_bytes=len(DATA))
    for source in (PHOTO, DATA, Image.open(PHOTO), PIXELS, FORMS["data URI"]):
        assert read_picture(source, sized).size == (width, height)
        assert f"{width}x{height} pixels, more than the limit of" in refusal(
            source, max_pixels=height * width - 1
        )
    for source in (PHOTO, DATA, io.BytesIO(DATA), FORMS["data URI"]):
        assert "larger than the limit" in refusal(source, max_bytes=len(DATA) - 1)
    assert "longer than the limit" in refusal(FORMS["data URI"], max_bytes=10)


def test_limits_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("MLX_VLM_MOXIN_MAX_PIXELS", "100")
    with pytest.raises(PictureError, match="more than the limit of 100"):
        read_picture(PHOTO)
    monkeypatch.setenv("MLX_VLM_MOXIN_MAX_PIXELS", "many")
    with pytest.raises(PictureError, match="MLX_VLM_MOXIN_MAX_PIXELS='many' must be a positive"):
        read_picture(PHOTO)


def test_pillows_own_limit_holds_by_default(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "decompression bomb" in refusal(DATA)
    assert "more than the limit of 200" in refusal(PIXELS)


def test_a_download_is_read_once_and_follows_redirects(web):
    for path in ("/plain/photo.png?one", "/once/photo.png", "/to//plain/photo.png?two"):
        image = read_picture(web.url + path)
        np.testing.assert_array_equal(np.asarray(image), PIXELS)
        assert web.counts[path] == 1
    assert web.counts["/plain/photo.png?two"] == 1
    assert "HTTP 404" in refusal(f"{web.url}/once/photo.png")


def test_a_name_in_other_letters_and_a_password_reach_the_server(web):
    host = web.url.removeprefix("http://")
    image = read_picture(f"HTTP://user:pass@{host}/plain/photo.png?ä ö")
    np.testing.assert_array_equal(np.asarray(image), PIXELS)
    assert web.counts["/plain/photo.png?%C3%A4%20%C3%B6"] == 1


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/half/photo.png", "bytes are missing"),
        ("/endless", "larger than the limit of 1000000 bytes"),
        ("/drip/photo.png", "took longer than 0.5 seconds"),
        ("/headers", "took longer than 0.5 seconds"),
        ("/slow/photo.png", "took longer than 0.5 seconds"),
        ("/to/file:///etc/passwd", "file:"),
        ("/to//to//to/ftp://example.org/", "ftp"),
    ],
)
def test_a_failed_download_is_refused_with_its_cause(web, path, part):
    assert part in refusal(web.url + path, max_bytes=10**6, timeout_s=0.5)


def test_an_address_that_does_not_answer_is_waited_for_until_the_deadline(web):
    host, port = web.url.removeprefix("http://").split(":")
    connections = picture_download._Connections(timeout_s=60, private_addresses=True)
    with connections, connections._connect((host, int(port))) as connection:
        assert 0 < connection.gettimeout() <= 60


def test_no_thread_is_left_of_a_download(web):
    read_picture(f"{web.url}/plain/photo.png?thread")
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


PRIVATE = {"private_addresses": False}


def test_private_addresses_are_refused_before_connecting(web):
    port = web.server_port
    hosts = ("127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "2130706433")
    sentences = {
        refusal(f"http://{host}:{port}/plain/photo.png?private", **PRIVATE).replace(host, "HOST")
        for host in hosts
    }
    sentences |= {
        refusal(f"http://{host}:{port}/plain/photo.png?private", **PRIVATE).replace(host, "HOST")
        for host in ("10.0.0.1", "169.254.169.254", "no-such-name.invalid")
    }
    assert len(sentences) == 1
    assert "no public address" in sentences.pop()
    assert not web.counts["/plain/photo.png?private"]


def test_a_redirect_does_not_lead_to_a_private_address(web, monkeypatch):
    monkeypatch.setattr(picture_download, "is_public", lambda address: address != "127.0.0.2")
    target = f"http://127.0.0.2:{web.server_port}/plain/photo.png?redirected"
    assert "no public address" in refusal(f"{web.url}/to/{target}", **PRIVATE)
    assert not web.counts["/plain/photo.png?redirected"]


def test_a_proxy_is_used_only_where_private_addresses_are_allowed(web, monkeypatch):
    monkeypatch.setenv("http_proxy", web.url)
    refusal("http://example.invalid/plain/photo.png")
    assert sum(path.startswith("http://example.invalid") for path in web.counts) == 1
    assert "no public address" in refusal("http://example.invalid/plain/photo.png", **PRIVATE)
    assert sum(path.startswith("http://example.invalid") for path in web.counts) == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_only_public_addresses_are_public(address, public):
    assert picture_download.is_public(address) == public


def test_local_files_are_refused_whether_they_exist_or_not(tmp_path):
    limits = {"local_files": False}
    sources = (PHOTO, str(PHOTO), PHOTO.as_uri(), "/no/such.png", tmp_path, {"path": str(PHOTO)})
    assert len({refusal(source, **limits) for source in sources}) == 1
    image = read_picture(DATA, PictureLimits(**limits))
    np.testing.assert_array_equal(np.asarray(image), PIXELS)
