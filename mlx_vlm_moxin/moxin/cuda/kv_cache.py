"""The key-value caches of all layers in one array, to which a kernel appends a token.

MLX updates an array in place only if nothing can still be reading it. While the GPU works on
the token before, something always is, so each token would cost a copy of the whole cache, in
two operations a layer. Here the caches hold views of one array, and a kernel writes behind
their last position. Every position is written once: what else shares the memory (a copy of the
cache, a slice that somebody kept) never sees anything change.
"""

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ...cache import KVCache
from .compiler import Kernel, fill, prepare
from .decoder_weights import count_array

THREADS = 256
# At least, of the whole grid: enough to keep the memory busy.
BLOCKS = 1024


class _Stack:
    """What is known of a list of caches.

    Attributes:
        array: their keys and values ``[2 * layers * B, KV, capacity, head_dim]``.
        views: what the caches hold of it, keys and values of each layer in turn.
        written: number of positions that have been written.
    """

    def __init__(self, array: mx.array, views: Sequence[mx.array], written: int):
        self.array, self.views, self.written = array, views, written

    def holds(self, cache: Sequence[KVCache]) -> bool:
        """Whether all of ``cache`` is in the array."""
        held = _held(cache)
        return (
            cache[0].offset <= self.written
            and len(held) == len(self.views)
            and all(array is view for array, view in zip(held, self.views))
        )


def _held(cache: Sequence[KVCache]) -> list[mx.array]:
    """Keys and values of each layer in turn."""
    return [array for layer in cache for array in (layer.keys, layer.values)]


# By the first layer's cache.
_stacks: weakref.WeakKeyDictionary[KVCache, _Stack] = weakref.WeakKeyDictionary()


def views_of(stacked: mx.array, layers: int) -> list[mx.array]:
    """Keys and values of each layer, in turn, of all in one array."""
    return mx.split(stacked, 2 * layers)


def take(cache: Sequence[KVCache], count: int = 1) -> mx.array:
    """Keys and values of ``cache`` ``[2 * layers * B, KV, capacity, head_dim]``.

    A kernel may write the ``count`` positions behind the last one; then :func:`put` is to be
    called.
    """
    known = _stacks.get(cache[0])
    if known is None or not known.holds(cache):
        return _gather(cache, _held(cache), [], count)
    if known.written == cache[0].offset <= known.array.shape[2] - count:
        return known.array
    return _gather(cache, [known.array], [], count)


def written(stacked: mx.array, by: mx.array, layers: int) -> tuple[mx.array, list[mx.array]]:
    """``stacked`` for those that wait until the kernel that gives ``by`` has written into it, and
    :func:`views_of` it.
    """
    (stacked,) = mx.depends([stacked], [by])
    return stacked, views_of(stacked, layers)


def put(cache: Sequence[KVCache], stacked: mx.array, views: Sequence[mx.array], count: int) -> None:
    """Let ``cache`` hold ``views`` of ``stacked``, with ``count`` more positions."""
    for layer, keys, values in zip(cache, views[::2], views[1::2]):
        layer.keys, layer.values = keys, values
        layer.offset += count
    _stacks[cache[0]] = _Stack(stacked, views, cache[0].offset)


def forget(cache: Sequence[Any]) -> None:
    """To be called before anything else updates ``cache``.

    It may do so in place, which leaves the views the same objects with other contents.
    """
    if type(cache[0]) is KVCache:
        _stacks.pop(cache[0], None)


def extend(cache: Sequence[KVCache], keys: Sequence[mx.array], values: Sequence[mx.array]) -> None:
    """Append each layer's ``keys`` and ``values`` ``[B, KV, T, head_dim]``, in a new array."""
    old = [] if cache[0].keys is None else _held(cache)
    new = [array for pair in zip(keys, values) for array in pair]
    stacked = _gather(cache, old, new, keys[0].shape[2])
    put(cache, stacked, views_of(stacked, len(cache)), keys[0].shape[2])


def _gather(
    cache: Sequence[KVCache], old: Sequence[mx.array], new: Sequence[mx.array], count: int
) -> mx.array:
    """``old``, what ``cache`` holds, and ``new`` in one array, with room for ``count`` tokens."""
    capacity = -(-(cache[0].offset + count) // KVCache.step) * KVCache.step
    shapes = [arrays[0].shape if arrays else None for arrays in (old, new)]
    kernel = stack((old or new)[0].dtype, len(old or new), *shapes, capacity)
    return kernel(count_array(cache[0].offset), *old, *new)[0]


@functools.lru_cache
def stack(
    dtype: mx.Dtype,
    count: int,
    old: tuple[int, ...] | None,
    new: tuple[int, ...] | None,
    capacity: int,
) -> Kernel:
    """The number of cached tokens and ``count`` arrays of the shape ``old``, then as many of the
    shape ``new`` (None: there are none) to all of them in one array.
    """
    batch, heads, _, width = old or new
    columns = [
        [f"{name}_{index}" if shape else "nullptr" for index in range(count)]
        for name, shape in (("old", old), ("new", new))
    ]
    entries = [f"own[{index}] = {{{', '.join(pair)}}};" for index, pair in enumerate(zip(*columns))]
    arrays = [name for names, shape in zip(columns, (old, new)) if shape for name in names]
    return prepare(
        f"stack<T, {count}, {width}>",
        [
            fill("moxin::Entry<T>* own", entries),
            *("filled", "heads", "cached_capacity", "tokens", "capacity", "out"),
        ],
        {"filled": mx.int32, **dict.fromkeys(arrays, dtype)},
        {"out": ((count * batch, heads, capacity, width), dtype)},
        file="cache.cu",
        dtype=dtype,
        blocks=count * -(-BLOCKS // count),
        threads=max(THREADS, count),
        scalars={
            "heads": batch * heads,
            "cached_capacity": old[2] if old else 0,
            "tokens": new[2] if new else 0,
            "capacity": capacity,
        },
    )
