"""Pictures for ``mlx_vlm.generate`` and similar functions: in every form, alone or in a list.

mlx-vlm reads paths, URLs and PIL images. The model's ``picture.read_picture`` also reads bytes,
files, arrays and dictionaries of data sets. Other models' pictures are left to mlx-vlm.
"""

import functools
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from mlx_vlm.models.moxin.picture import read_picture
from mlx_vlm.models.moxin.picture_sources import PictureError, PictureLimits
from mlx_vlm.models.moxin.prepared_picture import PreparedPicture
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from PIL import Image

from mlx_vlm_moxin.plugin.in_place import change_argument


def process_image(original: Callable) -> Callable:
    """mlx-vlm's function that reads one picture of a prompt and may resize it."""

    @functools.wraps(original)
    def read_and_resize(img: Any, resize_shape: Any, image_processor: Any) -> Any:
        if not isinstance(image_processor, MoxinImageProcessor):
            return original(img, resize_shape, image_processor)
        if isinstance(img, PreparedPicture):
            return img
        return resized(read_picture(img), resize_shape)

    return read_and_resize


def resized(picture: Image.Image, shape: tuple[int, int] | None) -> Image.Image:
    """``picture`` resized to fit into ``shape`` (width, height), as in mlx-vlm.

    Raises:
        PictureError: if no pixel would be left, or more than the limit.
    """
    if shape is None:
        return picture
    ratio = min(shape[0] / picture.width, shape[1] / picture.height)
    size = (int(picture.width * ratio), int(picture.height * ratio))
    limit = PictureLimits.from_environment().pixel_limit
    if not 0 < size[0] * size[1] <= (limit or size[0] * size[1]):
        raise PictureError(
            f"resize_shape {shape[0]} x {shape[1]} makes a picture of {size[0]} x {size[1]} pixels"
        )
    return picture.resize(size)


def _listed(image: Any) -> Any:
    """One picture in a list; a list or None unchanged."""
    if image is None or isinstance(image, list):
        return image
    return list(image) if isinstance(image, tuple) else [image]


def _read_all(images: Any) -> Any:
    return images if images is None else [read_picture(image) for image in _listed(images)]


def stream_generate(original: FunctionType) -> FunctionType:
    """mlx-vlm's function, which would evaluate an array's truth value."""
    return change_argument(original, "image", _listed, MoxinProcessor)


def generate(original: FunctionType) -> FunctionType:
    """mlx-vlm's function, which with ``verbose`` would print a path letter by letter."""
    return change_argument(original, "image", _listed, MoxinProcessor)


def batch_generate(original: FunctionType) -> FunctionType:
    """mlx-vlm's function, which would group pictures by size before most of them are read."""
    return change_argument(original, "images", _read_all, MoxinProcessor)


def resolve_media(original: Callable) -> Callable:
    """mlx-vlm's function that finds a training row's picture, and would clip 16-bit grey."""

    @functools.wraps(original)
    def resolve(value: Any, base_path: Any, *, image: bool = False) -> Any:
        if image and isinstance(value, Mapping) and value.get("bytes") is not None:
            return read_picture(value)
        return original(value, base_path, image=image)

    return resolve
