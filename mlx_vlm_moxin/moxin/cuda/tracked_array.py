"""Arrays that know whether they were written in place, which MLX does not tell."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import mlx.core as mx

# Methods that leave the same object of Python with another value.
WRITING = (
    "__iadd__",
    "__iand__",
    "__ifloordiv__",
    "__ilshift__",
    "__imatmul__",
    "__imod__",
    "__imul__",
    "__init__",
    "__ior__",
    "__ipow__",
    "__irshift__",
    "__isub__",
    "__itruediv__",
    "__ixor__",
    "__setitem__",
    "__setstate__",
)


class TrackedArray(mx.array):
    """An array with a note of whether it was written in place. Its copies are plain arrays.

    Attributes:
        owner: what ``track`` received; None since the array was written in place.
        writes: another number since any of these arrays was.
    """

    __slots__ = ("owner",)

    writes = 0

    def __reduce_ex__(self, protocol: Any) -> Any:
        return copy.copy, (copy.copy(self),)  # a plain array


_numbers = itertools.count(1)


def _noting(method: Callable) -> Callable:
    """``method`` of ``mx.array``, with a note that it was called."""

    def write(self: TrackedArray, *arguments: Any, **options: Any) -> Any:
        self.owner = None
        TrackedArray.writes = next(_numbers)
        return method(self, *arguments, **options)

    return write


for _name in WRITING:
    setattr(TrackedArray, _name, _noting(getattr(mx.array, _name)))


def track(array: mx.array, owner: Any) -> TrackedArray:
    """``array`` as an array that is tracked, with its ``owner``; both use the same memory."""
    tracked = TrackedArray.__new__(TrackedArray)
    mx.array.__init__(tracked, mx.zeros(array.shape, array.dtype))  # never computed
    mx.array.__setitem__(tracked, ..., array)
    tracked.owner = owner
    return tracked
