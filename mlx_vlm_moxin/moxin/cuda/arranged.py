"""The order in which Hopper's products of prompts read x (kernels/arranged.cuh)."""

import functools
import math
from typing import NamedTuple

import mlx.core as mx

from . import kernel
from .kernel import Kernel

# Columns of a contiguous piece.
PIECE = 64
THREADS = 256


class Order(NamedTuple):
    """One such order.

    Attributes:
        bits: of the weights that x is multiplied by.
        tokens: rows of x of a tile.
    """

    bits: int
    tokens: int

    @property
    def c_type(self) -> str:
        """The order in C++."""
        return f"moxin::Order<{self.bits}, {self.tokens}>"

    def shape(self, rows: int, width: int) -> tuple[int, int, int, int]:
        """Of an arranged x of ``[rows, width]``."""
        return math.ceil(rows / self.tokens), width // PIECE, self.tokens, PIECE


# Of x ``[rows, width]`` as it is.
ROW_MAJOR = "moxin::RowMajor"


class Arranged(NamedTuple):
    """An x in the order of a product.

    Attributes:
        array: ``Order.shape``.
        shape: ``(rows, width)`` of the x itself.
    """

    array: mx.array
    shape: tuple[int, int]


@functools.lru_cache
def arrange(dtype: mx.Dtype, order: Order, rows: int, width: int) -> Kernel:
    """A kernel of ``x`` ``[rows, width]`` of ``dtype``, to the same arranged."""
    constants = {"T": dtype, "BITS": order.bits, "TOKENS": order.tokens, "THREADS": THREADS}
    return kernel.build(
        "arrange",
        constants,
        [dtype],
        {"out": (order.shape(rows, width), dtype)},
        {"rows": rows, "width": width},
        blocks=math.ceil(rows * width // 8 / THREADS),
        threads=THREADS,
    )
