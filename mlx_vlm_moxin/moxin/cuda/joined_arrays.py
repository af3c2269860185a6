"""Arrays of modules as parts of one array, for kernels with many weights in one launch.

MLX handles each array of a launch several times. So arrays that are used together are moved next to
each other in memory, once, and those of the modules become views of their parts. Nothing is stored
twice. Before each pass ``Seen`` tells whether the modules still have these views, as they were.
"""

import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from operator import is_
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .errors import require
from .kernel import ALIGNMENT
from .tracked_array import TrackedArray, track


class Joined(NamedTuple):
    """Arrays that are parts of one.

    The parts refer to this, so it exists as long as one of them does.

    Attributes:
        kind: what ``join`` received.
        content: what ``join`` made of the whole array.
        parts: references to the arrays, in their order in memory.
    """

    kind: Any
    content: Any
    parts: list[weakref.ref[TrackedArray]]


class Seen:
    """Arrays as they were when this was made, without keeping them.

    Args:
        arrays: of modules.
        writes: ``TrackedArray.writes`` before they were read.
    """

    def __init__(self, arrays: Iterable[mx.array] = (), writes: int = -1):
        self._arrays = [weakref.ref(array) for array in arrays]
        self._writes = writes

    def are(self, arrays: Sequence[mx.array]) -> bool:
        """Whether ``arrays`` are the same, and no tracked array was written in place since."""
        if TrackedArray.writes != self._writes or len(arrays) != len(self._arrays):
            return False
        return all(map(is_, [array() for array in self._arrays], arrays))


class JoinedArrays:
    """Arrays of modules, joined in groups.

    Args:
        groups: places of the arrays of each group, as for ``join``.
        arrays: all of these arrays, in any order; called before each pass.
        check: raises UnsupportedError unless the modules are supported.
    """

    def __init__(
        self,
        groups: Callable[[], Iterable[Sequence[tuple[nn.Module, str]]]],
        arrays: Callable[[], Sequence[mx.array]],
        check: Callable[[], None],
    ):
        self._groups, self._all, self._check = groups, arrays, check
        # As they were when they were joined last: all of them, and one of each group.
        self._seen = Seen()
        self._parts: list[weakref.ref[TrackedArray]] = []

    def update(self) -> bool:
        """Check and join the arrays again unless they are as they were; whether that was done.

        Raises:
            UnsupportedError: if the modules are not supported, or if they share an array.
        """
        if self._are_same():
            return False
        self._seen, self._parts, writes = Seen(), [], TrackedArray.writes
        self._check()
        require(are_distinct(self._all()), "modules share an array")
        self._parts = [join(places).parts[0] for places in self._groups()]
        self._seen = Seen(self._all(), writes)
        return True

    @property
    def arrays(self) -> list[mx.array]:
        """One of 32-bit words for each group, as they were joined last; after an ``update`` those
        of the modules.

        Raises:
            UnsupportedError: if there are none, or if they were replaced or written in place.
        """
        parts = [part() for part in self._parts]
        owners = [None if part is None else part.owner for part in parts]
        require(bool(owners) and None not in owners, "arrays are not joined")
        return [owner.content for owner in owners]

    def _are_same(self) -> bool:
        try:
            return self._seen.are(self._all())
        except (KeyError, TypeError):  # other modules, which the check refuses
            return False


def offsets(types: Iterable[tuple[tuple[int, ...], mx.Dtype]]) -> list[int]:
    """Where arrays of these shapes and dtypes begin in a joined one, and its length, in words."""
    sizes = [math.prod(shape) * dtype.size for shape, dtype in types]
    units = [0, *itertools.accumulate(-(-size // ALIGNMENT) for size in sizes)]
    return [unit * ALIGNMENT // mx.uint32.size for unit in units]


def are_distinct(arrays: Sequence[mx.array]) -> bool:
    """Whether no array is there twice; an array cannot be a part of two others."""
    return len(set(map(id, arrays))) == len(arrays)


def join(
    places: Sequence[tuple[nn.Module, str]],
    kind: Any = None,
    make: Callable[[mx.array], Any] = lambda whole: whole,
) -> Joined:
    """The arrays at ``places`` as parts of one, into which they are moved if they are not yet.

    Args:
        places: modules, and names of arrays in them. Their sizes are multiples of 4 bytes.
        kind: of what is made; arrays that were joined as another kind are moved again.
        make: ``content`` of the result, from the whole array of 32-bit words. Each part begins at
            one of ``offsets``.
    """
    arrays = [module[name] for module, name in places]
    known = arrays[0].owner if isinstance(arrays[0], TrackedArray) else None
    if known is not None and known.kind == kind and _are_parts(arrays, known):
        return known
    joined, parts = _move(arrays, kind, make)
    for (module, name), part in zip(places, parts):
        module[name] = part
    del arrays, known
    mx.clear_cache()  # or what the arrays occupied would add up
    return joined


def _are_parts(arrays: Sequence[mx.array], joined: Joined) -> bool:
    """Whether ``arrays`` are the parts of ``joined``, as they were when it was made."""
    return len(arrays) == len(joined.parts) and all(
        part() is array and array.owner is joined for part, array in zip(joined.parts, arrays)
    )


def _move(
    arrays: Sequence[mx.array], kind: Any, make: Callable[[mx.array], Any]
) -> tuple[Joined, list[TrackedArray]]:
    """The contents of ``arrays`` in one array, and its parts instead of them."""
    starts, pieces = offsets((array.shape, array.dtype) for array in arrays), []
    for array, (start, end) in zip(arrays, itertools.pairwise(starts)):
        pieces.append(mx.view(array.flatten(), mx.uint32))
        padding = end - start - pieces[-1].size
        if padding:
            pieces.append(mx.zeros(padding, mx.uint32))
    whole = mx.concatenate(pieces)
    joined, parts = Joined(kind, make(whole), []), []
    for array, start in zip(arrays, starts):
        words = whole[start : start + array.nbytes // mx.uint32.size]
        parts.append(track(mx.view(words, array.dtype).reshape(array.shape), joined))
        joined.parts.append(weakref.ref(parts[-1]))
    mx.eval(whole, parts)
    return joined, parts
