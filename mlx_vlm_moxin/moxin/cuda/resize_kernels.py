"""The two kernels of a picture's resize. Both functions cache their results."""

import functools
import math

import mlx.core as mx

from . import kernel
from .kernel import Kernel

THREADS = 256
# Pixels of a row in shared memory, 32 KB.
MAX_WIDTH = 8192


def _words(address: int) -> dict[str, int]:
    """The lower and upper half of an address, as the int32 values that a kernel receives."""
    low, high = address & 0xFFFFFFFF, address >> 32
    return {"low": low - (low >> 31 << 32), "high": high}


@functools.lru_cache(256)
def resize_width(address: int, width: int, rows: int, size: int) -> Kernel:
    """The horizontal pass.

    Args:
        address: of ``[rows, width]`` pixels of four bytes in the host's memory.
        size: width of the result.

    Returns:
        A kernel of the pass's table (``resize_table``, int32), to uint32 ``[rows, size]``.
    """
    return kernel.build(
        "resize_width",
        {"SIZE": size, "MAX_WIDTH": MAX_WIDTH, "THREADS": THREADS},
        [mx.int32],
        {"resized": ((rows, size), mx.uint32)},
        {**_words(address), "width": width},
        blocks=rows,
        threads=THREADS,
    )


@functools.lru_cache(256)
def resize_height(address: int, size: int, planes: int) -> Kernel:
    """The vertical pass and the normalisation.

    Args:
        address: in the host's memory, where the resized bytes ``[3, size, size]`` are written.
        size: side of the result.
        planes: three for each tower.

    Returns:
        A kernel of the horizontal pass's result, the table, and float32 ``[planes, 256]``, the
        normalised value of each byte; to float32 ``[1, planes, size, size]``.
    """
    return kernel.build(
        "resize_height",
        {"SIZE": size, "PLANES": planes, "THREADS": THREADS},
        [mx.uint32, mx.int32, mx.float32],
        {"pixel_values": ((1, planes, size, size), mx.float32)},
        _words(address),
        blocks=math.ceil(size * size / THREADS),
        threads=THREADS,
    )
