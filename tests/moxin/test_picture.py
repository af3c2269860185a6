"""Reading a picture: all forms, orientations and modes give the same pixels."""

import io

import numpy as np
import pytest
from damaged_pictures import encoded
from mlx_vlm.models.moxin.picture import read_picture
from picture_forms import DATA, FORMS, GREY, PHOTO, PIXELS, refusal
from PIL import Image
from support import image_path


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


def test_a_file_object_is_read_from_its_beginning_every_time():
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
