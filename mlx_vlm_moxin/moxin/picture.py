"""Reads one picture from any supported form, or refuses it in one sentence.

A picture is read and decoded completely before it is used, so damage is found here; its size in
bytes and in pixels and the time for a download are limited. The result equals the reference's
``convert("RGB")``, with one exception: 16-bit grey, which Pillow clips to white, is scaled to
8 bits.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .picture_arrays import image_from_array, to_8_bits
from .picture_sources import PictureError, PictureLimits, open_source

PictureSource = (
    str | os.PathLike | bytes | BinaryIO | Mapping[str, Any] | Image.Image | np.ndarray | mx.array
)

MAX_NAME_LENGTH = 120
MAX_REASON_LENGTH = 240
# These store at most 16 bits of grey; Pillow opens some of them as 32-bit integers.
_GREY16_FORMATS = ("PNG", "PPM")
# Pillow decodes these by running another program (Ghostscript).
_FORMATS_OF_OTHER_PROGRAMS = ("EPS",)


def bounded(text: Any, length: int) -> str:
    """``text`` in one line of at most ``length`` characters, shortened in the middle if needed."""
    characters = str(text)[: 10 * length]
    line = " ".join("".join(c if c.isprintable() else " " for c in characters).split())
    half = (length - 5) // 2
    return line if len(line) <= length else f"{line[:half]} ... {line[-half:]}"


def picture_name(source: Any) -> str:
    """The name of ``source`` in messages: its path or URL, its data URI's type, or its class."""
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if isinstance(text, str) and text[:5].lower() == "data:":
            kind = re.split("[;,]", text[5:80])[0]
            return f"a data URI ({kind})" if kind else "a data URI"
        return bounded(text, MAX_NAME_LENGTH) or "an empty string"
    return f"the given {type(source).__name__}"


def read_picture(source: PictureSource, limits: PictureLimits | None = None) -> Image.Image:
    """A picture in RGB and upright, completely decoded.

    Args:
        source: a path or ``file:`` URL, an ``http(s)`` URL, a ``data:`` URI, a PIL image, the
            bytes of an image file, a binary file object, a data-set dictionary with ``bytes``
            or ``path``, or an array (NumPy, MLX or whatever NumPy can convert): ``[H, W]``,
            ``[H, W, C]`` or ``[C, H, W]`` with 1, 2 (grey, alpha), 3 or 4 channels; uint8,
            uint16, bool, or floats in [0, 1]. Alpha is dropped, as the reference does.
        limits: by default those of the environment.

    Returns:
        The given PIL image itself if it is already RGB and upright, since copying a large one takes
        half as long as resizing it.

    Raises:
        PictureError: naming what cannot be used as a picture, and why.
    """
    with named_errors(source):
        return _read(source, limits or PictureLimits.from_environment())


@contextmanager
def named_errors(source: Any) -> Iterator[None]:
    """Turn every error of the enclosed code into a ``PictureError`` that names ``source``."""
    try:
        yield
        return
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        reason, cause = "Pillow can identify no picture format in it", error
    except MemoryError as error:
        reason, cause = "there is not enough memory to decode it", error
    except Exception as error:  # Pillow's decoders raise almost any class for damaged files
        reason = bounded(getattr(error, "strerror", None) or error, MAX_REASON_LENGTH)
        reason, cause = reason or type(error).__name__, error
    message = f"Failed to load image from {picture_name(source)}: {reason}"
    raise PictureError(message) from cause


def _read(source: Any, limits: PictureLimits) -> Image.Image:
    if isinstance(source, Image.Image):
        return _upright_rgb(source, limits)
    if isinstance(source, Mapping):
        # A row of a data set: the undecoded form of Hugging Face's Image feature.
        for key in ("bytes", "path"):
            if source.get(key) is not None:
                return read_picture(source[key], limits)
        raise PictureError('A dictionary must hold a picture in "bytes" or its path in "path"')
    if hasattr(source, "__array__") or hasattr(source, "__array_interface__"):
        return _upright_rgb(image_from_array(source), limits)
    with open_source(source, limits) as file:
        return decode(file, limits)


def decode(file: BinaryIO, limits: PictureLimits) -> Image.Image:
    """The picture in ``file``, see ``read_picture``; of several frames, the first.

    Raises:
        Exception: almost any type, from Pillow for damaged files.
    """
    image = Image.open(file)
    _check_pixels(image, limits)
    if image.format in _FORMATS_OF_OTHER_PROGRAMS:
        raise ValueError(f"{image.format} is drawn by another program; convert it to PNG first")
    picture = _upright_rgb(image, limits)
    if image.format == "PNG":
        # Compares its checksums, which decoding does not.
        file.seek(0)
        Image.open(file).verify()
    return picture


def _check_pixels(image: Image.Image, limits: PictureLimits) -> None:
    width, height = image.size
    if 0 in image.size:
        raise PictureError(f"The picture is empty ({width}x{height} pixels)")
    limit = limits.pixel_limit
    if limit is not None and width * height > limit:
        raise ValueError(f"it has {width}x{height} pixels, more than the limit of {limit}")


def _upright_rgb(image: Image.Image, limits: PictureLimits) -> Image.Image:
    _check_pixels(image, limits)
    image.load()  # a damaged file fails here, not when it is resized
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    is_grey16 = image.mode == "I" and image.format in _GREY16_FORMATS
    if is_grey16 or image.mode.startswith("I;16"):
        image = Image.fromarray(to_8_bits(np.asarray(image).astype(np.uint16)))
    elif image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(
            f"its pixels are {kind}, for which no format defines black and white; scale them "
            "to 8 bits first"
        )
    return image.convert("RGB")
