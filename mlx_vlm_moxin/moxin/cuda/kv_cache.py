"""Key-value caches to which a kernel appends tokens in place.

MLX updates an array in place only if nothing can still be reading it. While the GPU works on the
previous token, something always is, so each token would cost a copy of the whole cache, in two
operations per layer (2.4 GB for 32 sequences of 300 tokens). Instead, the kernels write after the
last position of the arrays that the caches hold, and read the contents of these arrays, also if
others have written them.

A kernel writes each position of an array once, so other users of the array's memory (a copy of the
cache, a slice that is still referenced) never see a change. For this, the arrays that were last
returned and the number of written positions are recorded: a cache that was copied, trimmed, or
given other arrays gets new ones.
"""

import functools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from ...cache import BatchKVCache, KVCache
from . import kernel
from .kernel import C_TYPES, MIN_SIZE, Kernel, count_array, fill_table

THREADS = 256
# Thread blocks of the copying kernel: enough to keep the memory busy.
MIN_BLOCKS = 1024
# Arrays of one operation of MLX, which handles each result of an operation with each other: for the
# 72 arrays of 36 layers at once it needs 0.4 ms more than for two at a time on a slow host.
ARRAYS_AT_ONCE = 2


class _Appendable(NamedTuple):
    """Arrays of which nothing else uses the positions from ``written`` on."""

    arrays: Sequence[mx.array]
    written: int


Cache = KVCache | BatchKVCache
# int32 arrays of the number of cached tokens (first element) and, for each sequence, of how many of
# them are masked; what follows is not read.
Places = tuple[mx.array, mx.array]
# By the cache of the first layer.
_appendable: weakref.WeakKeyDictionary[Cache, _Appendable] = weakref.WeakKeyDictionary()


def places(cache: Sequence[Cache], batch: int) -> Places:
    """Where the next tokens of ``batch`` sequences go."""
    if type(cache[0]) is BatchKVCache:
        padding = mx.pad(cache[0].left_padding, (0, MIN_SIZE))
    else:
        padding = no_padding(batch)
    return count_array(cache[0].size()), padding


@functools.cache
def no_padding(batch: int) -> mx.array:
    """Numbers of masked tokens where there are none."""
    zeros = mx.zeros(batch + MIN_SIZE, mx.int32)
    mx.eval(zeros)  # so that passes need no kernel for it
    return zeros


def held(cache: Sequence[Cache]) -> list[mx.array]:
    """The arrays of ``cache``: keys and values of each layer in turn."""
    return [array for layer in cache for array in (layer.keys, layer.values)]


def is_current(cache: Sequence[Any]) -> bool:
    """Whether ``cache`` holds the arrays of the last ``append``, with the same number of tokens."""
    if type(cache[0]) not in (KVCache, BatchKVCache):
        return False
    known = _appendable.get(cache[0])
    return (
        known is not None
        and len(known.arrays) == 2 * len(cache)
        and all(layer.size() == known.written for layer in cache)
        and all(array is last for array, last in zip(held(cache), known.arrays))
    )


def reserve(cache: Sequence[Cache], count: int = 1) -> list[mx.array]:
    """Arrays with the contents of ``cache`` in which a kernel may write ``count`` more tokens.

    Returns:
        Keys and values of each layer in turn, ``[B, KV, capacity, head_dim]``; pass them to
        ``append`` afterwards.
    """
    arrays = held(cache)
    if cache[0].size() + count <= arrays[0].shape[2] and is_current(cache):
        return arrays
    if arrays[0].shape[0] > 1 or type(cache[0]) is BatchKVCache:
        del arrays  # which would keep the replaced arrays alive
        return _grow(cache, count)
    return _gather(cache, arrays, [], count)


def _grow(cache: Sequence[Cache], count: int) -> list[mx.array]:
    """Replace the arrays of each layer of ``cache`` by copies with room for ``count`` tokens.

    Each layer has separate arrays and releases the old ones as soon as they are copied, because the
    caches of a batch may fill most of the memory.
    """
    filled = cache[0].size()
    room = [(0, 0), (0, 0), (0, _capacity(filled + count) - filled), (0, 0)]
    _appendable.pop(cache[0], None)
    for layer in cache:
        layer.keys = mx.pad(layer.keys[..., :filled, :], room)
        layer.values = mx.pad(layer.values[..., :filled, :], room)
    return held(cache)


def _capacity(positions: int) -> int:
    """The smallest multiple of the cache's step with at least this many positions."""
    return -(-positions // KVCache.step) * KVCache.step


def empty(layers: int, kv_heads: int, head_dim: int, dtype: mx.Dtype) -> list[mx.array]:
    """As ``reserve``, for empty caches of one sequence.

    Returns:
        Keys and values of each layer in turn, zeros ``[1, kv_heads, KVCache.step, head_dim]``.
    """
    shape = (2 * layers, kv_heads, KVCache.step, head_dim)
    return mx.split(mx.zeros(shape, dtype), 2 * layers)


def after(arrays: Sequence[mx.array], written_by: mx.array) -> list[mx.array]:
    """``arrays`` with a dependency on ``written_by``, an output of the kernel that writes them."""
    return [
        array
        for start in range(0, len(arrays), ARRAYS_AT_ONCE)
        for array in mx.depends(list(arrays[start : start + ARRAYS_AT_ONCE]), [written_by])
    ]


def room(cache: Sequence[Cache], count: int) -> int:
    """Positions of arrays that ``append`` can assign to ``cache``, which is empty, with ``count``
    tokens; 0 if it is not empty, so that arrays of new tokens alone are needed for ``extend``.
    """
    return _capacity(count) if cache[0].keys is None else 0


def append(cache: Sequence[Cache], arrays: Sequence[mx.array], count: int) -> None:
    """Assign ``arrays``, in which ``count`` more tokens are written, to ``cache``."""
    is_batch = type(cache[0]) is BatchKVCache
    if is_batch:
        # Computed once, and not from the array before, which would refer to those of all tokens.
        written = cache[0]._idx + count
        offset = written - cache[0].left_padding
    for layer, keys, values in zip(cache, arrays[::2], arrays[1::2]):
        layer.keys, layer.values = keys, values
        if is_batch:
            # An object for each layer, because the cache's methods change it in place.
            layer._idx, layer.offset = written, mx.array(offset)
        else:
            layer.offset += count
    _appendable[cache[0]] = _Appendable(arrays, cache[0].size())


def extend(cache: Sequence[Cache], new: Sequence[mx.array]) -> None:
    """Append ``new`` keys and values of each layer in turn, ``[B, KV, T, head_dim]``, to ``cache``,
    which is not empty.
    """
    count = new[0].shape[2]
    append(cache, _gather(cache, held(cache), new, count), count)


def _gather(
    cache: Sequence[Cache], old: Sequence[mx.array], new: Sequence[mx.array], count: int
) -> list[mx.array]:
    """Copies of ``old``, which ``cache`` holds, each followed by one of ``new``, with room for
    ``count`` tokens.
    """
    capacity = _capacity(cache[0].size() + count)
    new_shape = new[0].shape if new else None
    copy = gather_caches(old[0].dtype, len(old), old[0].shape, new_shape, capacity)
    (stacked,) = copy(count_array(cache[0].size()), *old, *new)
    return mx.split(stacked, len(old))


@functools.lru_cache
def gather_caches(
    dtype: mx.Dtype,
    count: int,
    old: tuple[int, ...],
    new: tuple[int, ...] | None,
    capacity: int,
) -> Kernel:
    """The kernel that copies caches and new tokens into one array.

    Args:
        count: number of arrays.
        old: shape of each cached array ``[B, KV, capacity, head_dim]``.
        new: shape of each array of new tokens ``[B, KV, T, head_dim]``; None if there is none.
        capacity: positions of the result.

    Returns:
        A kernel of the number of cached tokens (``count_array``), the cached arrays, and the
        new arrays, to ``[count * B, KV, capacity, head_dim]``.
    """
    batch, heads, cached_capacity, width = old
    columns = [
        [f"{name}_{index}" if shape else "nullptr" for index in range(count)]
        for name, shape in (("cached", old), ("added", new))
    ]
    names = [name for column, shape in zip(columns, (old, new)) if shape for name in column]
    entries = {f"[{index}]": ", ".join(pair) for index, pair in enumerate(zip(*columns))}
    threads = max(THREADS, count)
    return kernel.build(
        "gather_caches",
        {"T": dtype, "HEAD_DIM": width, "COUNT": count, "THREADS": threads},
        [mx.int32, *[dtype] * len(names)],
        {"out": ((count * batch, heads, capacity, width), dtype)},
        {
            "rows": batch * heads,
            "cached_capacity": cached_capacity,
            "tokens": new[2] if new else 0,
            "capacity": capacity,
        },
        macros={
            "SOURCE_PARAMETERS": ", ".join(f"const {C_TYPES[dtype]}* {name}" for name in names),
            "FILL_SOURCES(table)": fill_table(entries),
        },
        blocks=count * -(-MIN_BLOCKS // count),
        threads=threads,
    )
