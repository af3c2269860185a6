"""The kernels between the products of a pass that computes one layer after the other.

All functions cache their results, because building a kernel takes longer than launching it.
A product of a kernel is ``[splits, rows, N]``, the sum of which is the product: float32, or of the
model's dtype (those of prompts, ``prompt_matmul.part_dtype``). One of MLX is ``[rows, N]`` in the
model's dtype (``splits`` is 0).
"""

import functools
import math
from typing import NamedTuple

import mlx.core as mx

from . import device, kernel
from .arranged import ROW_MAJOR, Order
from .decoder_sizes import DecoderSizes
from .kernel import Kernel
from .tiling import (
    ATTENTION_WARPS,
    FEW_QUERIES,
    MANY_BLOCKS,
    MANY_QUERIES,
    TILING,
    attention_keys,
    attention_memory,
)

NORM_THREADS = 512
ROTATE_THREADS = 448  # 64 for the rotations of a token, and 384


class Tokens(NamedTuple):
    """New tokens ``[batch, length]``.

    Attributes:
        is_causal: whether one sees only those before it and itself.
        capacity: positions of the arrays of their keys and values; 0 for ``length``.
    """

    batch: int
    length: int
    is_causal: bool = True
    capacity: int = 0

    @property
    def rows(self) -> int:
        """Number of tokens."""
        return self.batch * self.length

    @property
    def positions(self) -> int:
        """Positions of the arrays of their keys and values."""
        return self.capacity or self.length


def _shape(order: Order | None, rows: int, width: int) -> tuple[int, ...]:
    return (rows, width) if order is None else order.shape(rows, width)


def _order_type(order: Order | None) -> str:
    return ROW_MAJOR if order is None else order.c_type


@functools.lru_cache
def add_norm(
    dtype: mx.Dtype,
    rows: int,
    width: int,
    eps: float,
    product: mx.Dtype,
    splits: int,
    order: Order | None = None,
) -> Kernel:
    """Adds the residual to a product, and computes the RMS norm of the sum.

    Args:
        dtype: of the residual and the results.
        rows: tokens.
        width: hidden size.
        eps: of the norm.
        product: dtype of the product.
        splits: its parts; 0 for a product of MLX.
        order: of the norm, if the next product needs one.

    Returns:
        A kernel of the product (``[splits, rows, width]``, or ``[rows, width]`` if ``splits`` is
        0), the residual ``[rows, width]`` and the norm's weight ``[width]``, to the sum and its
        norm, ``[rows, width]`` each, the latter in ``order``.
    """
    return kernel.build(
        "add_norm",
        {
            "T": dtype,
            "Product": product,
            "WIDTH": width,
            "EPS": eps,
            "Order": _order_type(order),
            "THREADS": NORM_THREADS,
        },
        [product, dtype, dtype],
        {"sum": ((rows, width), dtype), "normed": (_shape(order, rows, width), dtype)},
        {"rows": rows, "splits": splits},
        blocks=rows,
        threads=NORM_THREADS,
    )


def rotation_constants(sizes: DecoderSizes, product: mx.Dtype) -> dict[str, object]:
    """Constants of the kernels that rotate queries and keys of products of dtype ``product``."""
    return {
        "T": sizes.dtype,
        "Product": product,
        "HEADS": sizes.heads,
        "KV_HEADS": sizes.kv_heads,
        "HEAD_DIM": sizes.head_dim,
        "LOG2_THETA": math.log2(sizes.theta),
    }


@functools.lru_cache
def rotate(sizes: DecoderSizes, tokens: Tokens, product: mx.Dtype, splits: int) -> Kernel:
    """Applies RoPE to queries and keys, and brings keys and values into the layout of the cache.

    Args:
        sizes: of the decoder.
        tokens: new tokens ``[B, T]``.
        product: dtype of the products.
        splits: parts of one product with all columns; 0 for three products.

    Returns:
        A kernel of the products of q_proj, k_proj and v_proj (three times the same one if
        ``splits``), the number of cached tokens (int32, first element) and the number of masked
        tokens of each sequence (int32), to queries ``[B, T, H, D]``, keys and values
        ``[B, KV, tokens.positions, D]`` of the model's dtype, with zeros after the tokens.
    """
    dtype = sizes.dtype
    shape = (tokens.batch, sizes.kv_heads, tokens.positions, sizes.head_dim)
    return kernel.build(
        "rotate",
        {**rotation_constants(sizes, product), "THREADS": ROTATE_THREADS},
        [product, product, product, mx.int32, mx.int32],
        {
            "queries": ((tokens.batch, tokens.length, sizes.heads, sizes.head_dim), dtype),
            "keys": (shape, dtype),
            "values": (shape, dtype),
        },
        {
            "rows": tokens.rows,
            "tokens": tokens.length,
            "splits": splits,
            "capacity": tokens.positions,
        },
        blocks=tokens.rows,
        threads=ROTATE_THREADS,
    )


def count_queries(sizes: DecoderSizes, tokens: Tokens) -> int:
    """Query rows of an attention block (``MANY_QUERIES`` or ``FEW_QUERIES``) for ``tokens``."""
    packed = tokens.length * sizes.heads // sizes.kv_heads
    blocks = tokens.batch * sizes.kv_heads * math.ceil(packed / MANY_QUERIES)
    has_memory = attention_memory(MANY_QUERIES, sizes.head_dim) <= device.max_shared_memory()
    is_many = has_memory and blocks >= MANY_BLOCKS and packed > FEW_QUERIES
    return MANY_QUERIES if is_many else FEW_QUERIES


@functools.lru_cache
def attend(
    sizes: DecoderSizes, tokens: Tokens, capacity: int, order: Order | None = None
) -> Kernel:
    """Attention of new tokens to the cache and to each other.

    Args:
        sizes: of the decoder.
        tokens: new tokens ``[B, T]``.
        capacity: positions of the cached arrays.
        order: of the result, if the next product needs one.

    Returns:
        A kernel of queries ``[B, T, H, D]``, cached keys and values ``[B, KV, capacity, D]``, new
        keys and values ``[B, KV, tokens.positions, D]``, the number of cached tokens (int32, first
        element) and the number of masked tokens of each sequence (int32), to ``[B * T, H * D]`` in
        ``order``; all of the model's dtype.
    """
    dtype, queries = sizes.dtype, count_queries(sizes, tokens)
    tiles = math.ceil(tokens.length * sizes.heads // sizes.kv_heads / queries)
    return kernel.build(
        "prompt_attention",
        {
            "T": dtype,
            "HEADS": sizes.heads,
            "KV_HEADS": sizes.kv_heads,
            "HEAD_DIM": sizes.head_dim,
            "WINDOW": sizes.window,
            "SCALE": sizes.head_dim**-0.5,
            "KEY_WARPS": MANY_QUERIES // queries,
            "CAUSAL": tokens.is_causal,
            "Order": _order_type(order),
            **TILING,
            "KEYS": attention_keys(queries),
        },
        [dtype, dtype, dtype, dtype, dtype, mx.int32, mx.int32],
        {"out": (_shape(order, tokens.rows, sizes.attended), dtype)},
        {
            "capacity": capacity,
            "tokens": tokens.length,
            "new_capacity": tokens.positions,
            "tiles": tiles,
        },
        blocks=tokens.batch * sizes.kv_heads * tiles,
        threads=32 * ATTENTION_WARPS,
        shared_memory=attention_memory(queries, sizes.head_dim),
    )
