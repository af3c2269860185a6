"""Token embeddings, and a picture's visual tokens among them.

MLX's kernels for these are compiled when they are first used, in 3 to 5 s each; ours take 0.1 s and
are compiled while weights are read.
"""

import functools
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from . import kernel
from .decoder_layers import TRAINING
from .errors import require
from .fallback import or_none
from .kernel import DTYPES, Kernel

THREADS = 256
ID_DTYPES = (mx.int32, mx.uint32)
# Values that a thread moves at once.
UNIT = 8


@functools.lru_cache
def embed_tokens(dtype: mx.Dtype, ids: mx.Dtype, tokens: int, rows: int, width: int) -> Kernel:
    """The kernel of ids ``[tokens]`` and a table ``[rows, width]``, to ``[tokens, width]``."""
    return kernel.build(
        "embed_tokens",
        {"T": dtype, "Id": ids, "WIDTH": width, "THREADS": THREADS},
        [ids, dtype],
        {"out": ((tokens, width), dtype)},
        {"rows": rows},
        blocks=tokens,
        threads=THREADS,
    )


@functools.lru_cache
def merge_features(dtype: mx.Dtype, tokens: int, width: int) -> Kernel:
    """The kernel of embeddings ``[tokens, width]``, image features ``[N, width]`` and, for each
    token, the number of its row of features (int32, negative if it has none), to ``[tokens,
    width]``.
    """
    return kernel.build(
        "merge_features",
        {"T": dtype, "WIDTH": width, "THREADS": THREADS},
        [dtype, dtype, mx.int32],
        {"out": ((tokens, width), dtype)},
        {"tokens": tokens},
        blocks=tokens,
        threads=THREADS,
    )


def is_supported(table: nn.Module, ids: mx.array) -> bool:
    """Whether the kernel reads ``ids`` and ``table``, which is plain."""
    if type(table) is not nn.Embedding:
        return False
    weight = table["weight"]
    return weight.dtype in DTYPES and ids.dtype in ID_DTYPES and weight.shape[1] % UNIT == 0


def embed(table: nn.Module, ids: mx.array) -> mx.array:
    """``table(ids)`` ``[*ids.shape, width]``, by the kernel where it supports that."""
    if not is_supported(table, ids):
        return table(ids)
    weight = table["weight"]
    (out,) = embed_tokens(weight.dtype, ids.dtype, ids.size, *weight.shape)(ids.flatten(), weight)
    return out.reshape(*ids.shape, -1)


def merge(inputs_embeds: mx.array, image_features: mx.array, is_image: mx.array) -> mx.array:
    """As ``moxin.merge_image_features``."""
    rows, count, width = image_features.shape
    dtype, is_image = inputs_embeds.dtype, is_image[:rows]
    index = mx.cumsum(is_image.astype(mx.int32), axis=1) - 1
    first = count * mx.arange(rows, dtype=mx.int32)[:, None]
    places = mx.where(is_image & (index < count), index + first, -1)
    merged = inputs_embeds[:rows]
    (out,) = merge_features(dtype, places.size, width)(
        merged.flatten(0, 1), image_features.astype(dtype).flatten(0, 1), places.flatten()
    )
    merged = out.reshape(merged.shape)
    if rows == inputs_embeds.shape[0]:
        return merged
    return mx.concatenate([merged, inputs_embeds[rows:]], axis=0)


@or_none("MLX computes the embeddings")
def input_embeddings(
    model: nn.Module, input_ids: mx.array, image_features: Callable[[], mx.array] | None
) -> mx.array | None:
    """Embeddings of a prompt, by kernels; None if they do not support this model.

    Args:
        model: a ``Model``.
        input_ids: ``[B, T]``.
        image_features: records visual tokens ``[K, N, hidden_size]`` of the first ``K`` rows, if
            there are any.

    Returns:
        ``[B, T, hidden_size]``.
    """
    require(not model.training, TRAINING)
    table = model.language_model.model.embed_tokens
    require(is_supported(table, input_ids), "embeddings of another class or dtype")
    features = None if image_features is None else image_features()  # which a GPU computes first
    inputs_embeds = embed(table, input_ids)
    if features is None:
        return inputs_embeds
    return merge(inputs_embeds, features, input_ids >= model.config.image_token_index)
