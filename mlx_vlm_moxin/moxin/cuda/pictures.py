"""``MoxinImageProcessor.engine_process`` and ``engine_pixels``: pictures by two kernels.

One resizes a picture's rows, the other its columns, and normalises. Pillow needs some 3 ms for
640x480 pixels. The kernels read the pixels where they are in the host's memory, and the results are
equal to Pillow's bit by bit.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
from PIL import Image

from ..image_processing_moxin import MoxinImageProcessor, ProcessedPictures
from ..normalization import normalized_bytes
from ..picture_memory import BYTES_PER_PIXEL, pixels_of
from ..resize import Window, find_window
from . import host_memory, resize_kernels
from .errors import require
from .fallback import or_none
from .resize_table import resize_table

# Larger pictures are in several blocks of Pillow's memory; copying them takes longer than resizing.
MAX_PIXELS = 2**22
# Pictures whose pixels are in the host's shared memory at the same time.
PICTURES_AT_ONCE = 8
# Pictures whose kernels are submitted together, while further ones are copied. Submitting takes 0.1
# ms of the host's time, half of what it takes to copy a picture of 640x480.
SUBMITTED_AT_ONCE = 4


@or_none("Pillow resizes the pictures")
def process(
    processor: MoxinImageProcessor, images: Sequence[Image.Image]
) -> ProcessedPictures | None:
    """RGB pictures as input of the model; None if the kernels do not compute them.

    Returns:
        What ``processor.process`` returns for them.
    """
    parts, squares = [], []
    for computed, in_shared_memory in _record(processor, images):
        mx.eval(computed)
        parts += computed
        squares.append(np.stack(in_shared_memory))
    pixel_values, size = _join(parts), processor.image_size
    mx.eval(pixel_values)
    whole = squares[0] if len(squares) == 1 else np.concatenate(squares)
    return ProcessedPictures(pixel_values, whole.reshape(len(images), 1, 3, size, size))


@or_none("Pillow resizes the pictures")
def pixels(
    processor: MoxinImageProcessor,
    images: Sequence[Image.Image],
    until: contextlib.ExitStack | None = None,
) -> mx.array | None:
    """The pixels alone; the GPU may still be computing them.

    Arguments as of ``processor.pixels``.

    Returns:
        What ``processor.pixels`` returns; None if the kernels do not compute them.
    """
    joined = _join([part for parts, _ in _record(processor, images, until) for part in parts])
    if until is None:
        mx.async_eval(joined)  # another thread may use it
    return joined


def _join(parts: Sequence[mx.array]) -> mx.array:
    return mx.concatenate(parts) if len(parts) > 1 else parts[0]


def _window(processor: MoxinImageProcessor, image: Image.Image) -> Window:
    """The resize of ``image``.

    Raises:
        UnsupportedError: if the kernels do not compute it.
    """
    fill, *others = set(processor.fills)
    require(not others, "each tower's picture is letterboxed in another colour")
    window = find_window(image, processor.resize_strategy, processor.image_size, fill)
    require(window is not None, "the steps of the resize are in another order")
    width, height = window.image.size
    require(width <= resize_kernels.MAX_WIDTH, f"{width} pixels in a row")
    require(width * height <= MAX_PIXELS, f"{width}x{height} pixels")
    return window


def _record(
    processor: MoxinImageProcessor,
    images: Sequence[Image.Image],
    until: contextlib.ExitStack | None = None,
) -> Iterator[tuple[list[mx.array], list[np.ndarray]]]:
    """Pixels and squares of a few pictures at a time, whose kernels run while others are copied.

    The squares are in shared memory, until the next ones are computed. The kernels of the last few
    pictures are submitted at the end of ``until``, or of the iteration.
    """
    require(len(images) > 0, "there is no picture")
    windows = [_window(processor, image) for image in images]
    for first in range(0, len(windows), PICTURES_AT_ONCE):
        some = windows[first : first + PICTURES_AT_ONCE]
        is_last = first + len(some) == len(windows)
        with contextlib.ExitStack() as stack:
            yield _record_some(processor, some, until if until is not None and is_last else stack)


def _record_some(
    processor: MoxinImageProcessor, windows: Sequence[Window], stack: contextlib.ExitStack
) -> tuple[list[mx.array], list[np.ndarray]]:
    """As ``_record``; the memory is borrowed in the context ``stack``."""
    size = processor.image_size
    square_bytes = 3 * size * size
    constants = processor.image_mean, processor.image_std
    normalized = _normalized(*(tuple(map(tuple, values)) for values in constants))
    pixel_values, squares = [], []
    for window in windows:
        width, height = window.image.size
        picture_bytes = BYTES_PER_PIXEL * width * height
        borrowed = host_memory.buffers.borrow(picture_bytes + square_bytes)
        address, values, results = stack.enter_context(borrowed)
        values[:picture_bytes].view(np.uint32)[:] = pixels_of(window.image)
        pixel_values.append(_launch(address, window, size, normalized))
        squares.append(values[picture_bytes : picture_bytes + square_bytes])
        results.append(pixel_values[-1])
        if len(squares) % SUBMITTED_AT_ONCE == 0 and len(squares) < len(windows):
            mx.async_eval(pixel_values)
    return pixel_values, squares


def _launch(address: int, window: Window, size: int, normalized: mx.array) -> mx.array:
    """Pixels ``[1, planes, size, size]`` of the picture at ``address``, recorded."""
    width, height = window.image.size
    columns = _table(width, window.size[0], window.corner[0], size)
    rows, first, count = _rows(height, window.size[1], window.corner[1], size)
    source = address + BYTES_PER_PIXEL * width * first
    resize_width = resize_kernels.resize_width(source, width, count, size)
    target = address + BYTES_PER_PIXEL * width * height
    resize_height = resize_kernels.resize_height(target, size, normalized.shape[0])
    (narrow,) = resize_width(columns)
    return resize_height(narrow, rows, normalized)[0]


@functools.lru_cache(64)
def _table(source: int, size: int, first: int, count: int) -> mx.array:
    """``resize_table`` on the GPU."""
    return _on_gpu(resize_table(source, size, first, count))


@functools.lru_cache(64)
def _rows(source: int, size: int, first: int, count: int) -> tuple[mx.array, int, int]:
    """``resize_table`` of the vertical pass, which begins at the first row that it needs.

    Returns:
        The table, the first row of the source that is needed, and the number of those.
    """
    table = resize_table(source, size, first, count).copy()
    low, high = int(table[0].min()), int((table[0] + table[1]).max())
    table[0] -= low
    return _on_gpu(table), low, high - low


@functools.lru_cache(8)
def _normalized(*constants: tuple[tuple[float, ...], ...]) -> mx.array:
    """``normalized_bytes`` on the GPU."""
    return _on_gpu(normalized_bytes(*constants))


def _on_gpu(array: np.ndarray) -> mx.array:
    """``array`` in the GPU's memory, where it is read faster than in shared memory."""
    result = mx.array(array) + 0
    mx.eval(result)
    return result
