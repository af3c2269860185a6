"""Resizes a picture to a square with Prismatic's three strategies, in bounded memory.

Pillow's bicubic filter on bytes, the horizontal pass first, as in the reference and in Pillow
before version 13. In addition to the picture, memory for ``MAX_EXTRA_PIXELS`` is used. If the
reference's order of steps would need more (pictures of extreme proportions, such as
200 x 80,000), the steps run in another order. The result is the same up to one level of 255, or
more where the filter leaves the range of a byte.
"""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from .picture_sources import PictureError, PictureLimits

# Pictures of so many pixels are resized in threads, in strips small enough to be copied.
MIN_PIXELS, STRIP_PIXELS = 2**21, 2**18
MAX_THREADS = 8
# Four bytes each.
MAX_EXTRA_PIXELS = 2**24
# Source pixels that the filter reads beyond each side of a box, per output pixel.
_SUPPORT = 2
# Bytes of Pillow's table of weights per source pixel of a row or column.
_WEIGHTS_BYTES = 32
# Output pixels of a long row or column whose weights are computed at once.
_PART = 8

Colour = Sequence[int]


class Window(NamedTuple):
    """A picture resized as a whole, the horizontal pass first, of which a square is kept.

    Attributes:
        image: the picture, padded if it is letterboxed.
        size: width and height that it is resized to.
        corner: left and top of the square in the result.
    """

    image: Image.Image
    size: tuple[int, int]
    corner: tuple[int, int]


def find_window(image: Image.Image, strategy: str, size: int, fill: Colour) -> Window | None:
    """The resize of a picture to a square of ``size``.

    Args:
        strategy: one of "resize-naive", "letterbox", "resize-crop".
        fill: RGB bytes of the padding.

    Returns:
        None if the steps would need too much memory, so that they run in another order.

    Raises:
        PictureError: as ``letterbox``.
    """
    if strategy == "letterbox":
        square = _padded_size(image)
        if not _fits(square, image):
            return None
        image = _pad(image, square, fill)
    if strategy == "resize-naive":
        window = Window(image, (size, size), (0, 0))
    else:
        window = Window(image, *_central_square(image.size, size))
    whole = window.size[0], image.height
    return window if _fits(window.size, image) and _fits(whole, image) else None


def resize_naive(image: Image.Image, size: int) -> Image.Image:
    """Squashed to the square."""
    return _resize(image, size, size)


def resize_crop(image: Image.Image, size: int) -> Image.Image:
    """Short side to ``size``, then the central square."""
    width, height = image.size
    new_size, (left, top) = _central_square(image.size, size)
    if _fits(new_size, image):
        return _resize(image, *new_size).crop((left, top, left + size, top + size))
    # The part of the source that becomes the central square, and the filter's margin around it.
    scale = max(image.size) / max(new_size)
    start = max(left, top) * scale
    margin = _SUPPORT * max(1, scale) + 1
    low = max(0, int(start - margin))
    high = min(max(image.size), int(start + size * scale + margin) + 1)
    box = (start - low, start - low + size * scale)
    if width <= height:
        image, box = image.crop((0, low, width, high)), (0, box[0], width, box[1])
    else:
        image, box = image.crop((low, 0, high, height)), (box[0], 0, box[1], height)
    return image.resize((size, size), Image.Resampling.BICUBIC, box)


def letterbox(image: Image.Image, size: int, fill: Colour) -> Image.Image:
    """Both ends of the short side padded by ``int(difference / 2)``, then ``resize_crop``.

    Args:
        fill: RGB bytes of the padding.

    Raises:
        PictureError: if the padded square has more pixels than a picture may have.
    """
    square = _padded_size(image)
    left, top = _margins(image)
    if _fits(square, image):
        return resize_crop(_pad(image, square, fill), size)
    # Bands of rows are padded and resized one after another, which does not change the fill.
    width = size if square[0] <= square[1] else int(size * square[0] / square[1])
    rows = max(1, MAX_EXTRA_PIXELS // square[0])
    narrow = Image.new("RGB", (width, square[1]), tuple(fill))
    for first in range(0, image.height, rows):
        last = min(first + rows, image.height)
        band = Image.new("RGB", (square[0], last - first), tuple(fill))
        band.paste(image.crop((0, first, image.width, last)), (left, 0))
        narrow.paste(_resize_width(band, width), (0, top + first))
    height = size if square[0] >= square[1] else int(size * square[1] / square[0])
    resized = narrow.resize((width, height), Image.Resampling.BICUBIC)
    x, y = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((x, y, x + size, y + size))


def _central_square(source: tuple[int, int], size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size that ``source`` is resized to, and the square's corner (torchvision's rounding)."""
    width, height = source
    if width <= height:
        resized = (size, int(size * height / width))
    else:
        resized = (int(size * width / height), size)
    return resized, (round((resized[0] - size) / 2), round((resized[1] - size) / 2))


def _margins(image: Image.Image) -> tuple[int, int]:
    """Padding of the left and of the upper side."""
    side = max(image.size)
    return (side - image.width) // 2, (side - image.height) // 2


def _padded_size(image: Image.Image) -> tuple[int, int]:
    """The size of the letterboxed picture, see ``letterbox``."""
    left, top = _margins(image)
    square = (image.width + 2 * left, image.height + 2 * top)
    limit = PictureLimits.from_environment().pixel_limit
    if limit is not None and square[0] * square[1] > limit:
        raise PictureError(
            f"A picture of {image.width}x{image.height} pixels cannot be letterboxed: its square "
            f"would have more than the limit of {limit} pixels"
        )
    return square


def _pad(image: Image.Image, square: tuple[int, int], fill: Colour) -> Image.Image:
    padded = Image.new("RGB", square, tuple(fill))
    padded.paste(image, _margins(image))
    return padded


def _fits(size: tuple[int, int], image: Image.Image) -> bool:
    """Whether a picture of ``size`` is no larger than ``image`` and the extra memory."""
    return size[0] * size[1] <= max(image.width * image.height, MAX_EXTRA_PIXELS)


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic, with the horizontal pass first if its result fits into memory."""
    if _fits((width, image.height), image):
        return _resize_height(_resize_width(image, width), height)
    return _resize_width(_resize_height(image, height), width)


def _resize_height(image: Image.Image, height: int) -> Image.Image:
    """The vertical pass."""
    return _resize_side(image, (image.width, height), axis=1)


def _resize_width(image: Image.Image, width: int) -> Image.Image:
    """The horizontal pass."""
    return _resize_side(image, (width, image.height), axis=0)


def _resize_side(image: Image.Image, size: tuple[int, int], axis: int) -> Image.Image:
    """A pass along ``axis``: ``size`` differs from the picture's there only."""
    if image.size[axis] > _longest_side():
        return _in_parts(image, size, axis)
    strips, across = _count_strips(image.size, axis), size[1 - axis]
    if strips < 2:
        return image.resize(size, Image.Resampling.BICUBIC)
    edges = [across * index // strips for index in range(strips + 1)]

    # Rows do not depend on each other in a horizontal pass, nor columns in a vertical one, and
    # Pillow resizes without Python's lock. A copy of the strip is faster than a box within the
    # picture, for which Pillow would make a pass along the other axis too.
    def resize_strip(first: int, last: int) -> Image.Image:
        box, part = [0, 0, *image.size], [*size]
        box[1 - axis], box[3 - axis], part[1 - axis] = first, last, last - first
        return image.crop(box).resize(part, Image.Resampling.BICUBIC)

    resized = Image.new("RGB", size)
    for first, strip in zip(edges, _pool(os.getpid()).map(resize_strip, edges, edges[1:])):
        resized.paste(strip, (0, first) if axis == 0 else (first, 0))
    return resized


def _count_strips(size: tuple[int, int], axis: int) -> int:
    """Strips of a picture of ``size`` for a pass along ``axis``."""
    threads, pixels = _count_threads(), size[0] * size[1]
    # Each strip has a table of weights.
    if threads < 2 or pixels < MIN_PIXELS or size[axis] > _longest_side() // threads:
        return 1
    return min(pixels // STRIP_PIXELS, size[1 - axis])


def _count_threads() -> int:
    return min(os.cpu_count() or 1, MAX_THREADS)


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads that resize. A forked process has none of its parent's, hence the argument."""
    return ThreadPoolExecutor(_count_threads(), "resize")


def _longest_side() -> int:
    """Longest side whose weights fit into the extra memory at once."""
    return 4 * MAX_EXTRA_PIXELS // _WEIGHTS_BYTES


def _in_parts(image: Image.Image, size: tuple[int, int], axis: int) -> Image.Image:
    """A pass along ``axis`` that computes a few output pixels at a time."""
    resized = Image.new("RGB", size)
    scale = image.size[axis] / size[axis]
    for first in range(0, size[axis], _PART):
        last = min(first + _PART, size[axis])
        place, part, box = [0, 0], [*size], [0, 0, *image.size]
        place[axis], part[axis] = first, last - first
        box[axis], box[axis + 2] = first * scale, min(last * scale, image.size[axis])
        resized.paste(image.resize(part, Image.Resampling.BICUBIC, box), place)
    return resized
