"""Checks that the kernels can read and append to the key-value caches of a pass."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .decoder_sizes import DecoderSizes


def caches_fit(
    cache: Sequence[Any] | None,
    kinds: Sequence[type],
    inputs: mx.array,
    inputs_embeds: mx.array | None,
    sizes: DecoderSizes,
) -> bool:
    """Whether new tokens can be appended to all of ``cache`` by the kernels.

    Args:
        cache: one per layer; all of the same one of ``kinds`` and filled alike.
        inputs: ids of the new tokens ``[B, T]``.
        inputs_embeds: their embeddings, if given instead of ids.
    """
    if not cache:
        return False
    kind = type(cache[0])
    if kind not in kinds or not all(type(layer) is kind for layer in cache):
        return False
    if inputs_embeds is not None and inputs_embeds.dtype != sizes.dtype:
        return False
    filled, keys = cache[0].size(), cache[0].keys
    if not all(layer.size() == filled for layer in cache):
        return False
    if keys is None:
        return filled == 0 and all(layer.keys is None for layer in cache)
    if inputs.shape[1] == 1:
        cache = cache[:1]  # the graph of a step checks all layers when it is traced
    return are_alike(
        [array for layer in cache for array in (layer.keys, layer.values)], inputs.shape[0], sizes
    )


def are_alike(arrays: Sequence[mx.array | None], batch: int, sizes: DecoderSizes) -> bool:
    """Whether cached keys and values are ``[batch, KV, capacity, head_dim]``, of one capacity."""
    if arrays[0] is None or arrays[0].ndim != 4:
        return False
    shape = (batch, sizes.kv_heads, arrays[0].shape[2], sizes.head_dim)
    return all(
        array is not None and array.shape == shape and array.dtype == sizes.dtype
        for array in arrays
    )
