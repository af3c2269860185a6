"""Attention of one new token of each sequence of a batch, appended to the cache in place."""

import functools
import math
from collections.abc import Callable

import mlx.core as mx

from . import kernel, kv_cache, tiling
from .decoder_sizes import DecoderSizes
from .layerwise_kernels import rotation_constants

Attend = Callable[..., tuple[mx.array, mx.array, mx.array]]


@functools.lru_cache
def step_attention(
    sizes: DecoderSizes, batch: int, capacity: int, product: mx.Dtype, splits: int
) -> Attend:
    """Rotates queries and keys, appends keys and values to the cache, and attends to them all.

    Args:
        batch: number of sequences.
        capacity: positions of the cache.
        product: dtype of the products.
        splits: as in ``layerwise_kernels.rotate``.

    Returns:
        A function of the products of q_proj, k_proj and v_proj (three times the same one if
        ``splits``), the numbers of cached and of masked tokens, and the cached keys and values
        ``[B, KV, capacity, D]``. It returns the result ``[B, H * D]``, and the keys and values with
        the new ones: the same arrays, with a dependency on the kernel.
    """
    dtype, threads = sizes.dtype, 32 * tiling.ATTENTION_WARPS
    tiles = math.ceil(sizes.heads // sizes.kv_heads / tiling.FEW_QUERIES)
    attend = kernel.build(
        "step_attention",
        {
            **rotation_constants(sizes, product),
            "WINDOW": sizes.window,
            "SCALE": sizes.head_dim**-0.5,
            "TILE_QUERIES": tiling.FEW_QUERIES,
            "KEY_WARPS": tiling.MANY_QUERIES // tiling.FEW_QUERIES,
            "THREADS": threads,
            **tiling.TILING,
        },
        [product, product, product, mx.int32, mx.int32, dtype, dtype],
        {"out": ((batch, sizes.attended), dtype)},
        {"batch": batch, "capacity": capacity, "splits": splits, "tiles": tiles},
        blocks=batch * sizes.kv_heads * tiles,
        threads=threads,
        shared_memory=tiling.attention_memory(tiling.FEW_QUERIES, sizes.head_dim),
    )

    def append_and_attend(*arrays: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        (attended,) = attend(*arrays)
        keys, values = kv_cache.after(arrays[-2:], attended)
        return attended, keys, values

    return append_and_attend
