"""The kernels of a pass over a few rows, prepared for their sizes.

All functions keep what they return: preparing a kernel takes longer than launching it.
Products come from a kernel as ``[splits, rows, N]`` float32, whose sum counts, and from MLX as
``[rows, N]`` in the model's dtype (``splits`` 0).
"""

import functools
import math
from typing import NamedTuple

import mlx.core as mx

from .compiler import Kernel, prepare
from .decoder_weights import Packing

# Rows of a product's tile, weights of a row that it takes at a time, its warps, and stages of the
# input, as in kernels/rows_product.cu.
ROW_TILES = (16, 32, 64)
TILE_K = 128
PRODUCT_WARPS = 8
STAGES = 3
# Of 8 rows of weights, of a warp, as in kernels/rows.cu.
TILES = 2
# Blocks that keep the memory busy; K is divided into parts until there are as many.
TARGET_BLOCKS = 400
MAX_SPLITS = 8
MULTIPLY_THREADS = 32 * PRODUCT_WARPS
NORM_THREADS = 512
ROTATE_THREADS = 256
ATTENTION_THREADS = 128
# Packed rows of an attention block, the fewer ones if there were fewer blocks than processors
# otherwise; and keys, which it holds twice.
MANY_QUERIES, FEW_QUERIES = 64, 16
MANY_BLOCKS = 128
KEYS = 64


class Heads(NamedTuple):
    """Numbers of query and key-value heads and their width."""

    queries: int
    keys: int
    width: int


class Tokens(NamedTuple):
    """New tokens ``[batch, length]``."""

    batch: int
    length: int

    @property
    def rows(self) -> int:
        return self.batch * self.length


def row_tile(rows: int) -> int | None:
    """Height of the tile that a product of ``rows`` takes, None if no kernel takes so many."""
    return next((tile for tile in ROW_TILES if rows <= tile), None)


def count_splits(columns: int, width: int, blocks: int) -> int:
    """Parts of K of a product with ``columns`` rows of ``width`` weights that ``blocks`` take."""
    needed = math.ceil(columns / (PRODUCT_WARPS * 8 * TILES))
    return max(1, min(blocks // needed, MAX_SPLITS, width // TILE_K))


def product_memory(tile: int) -> int:
    """Bytes of shared memory of a product's block."""
    return STAGES * tile * TILE_K * 2


def attention_memory(queries: int, width: int) -> int:
    """Bytes of shared memory of an attention block, for heads of ``width``."""
    return (queries + 4 * KEYS) * (2 * width + 16)


@functools.lru_cache
def multiply(
    dtype: mx.Dtype, packing: Packing, rows: int, width: int, is_gated: bool = False
) -> tuple[Kernel, int] | None:
    """``x`` ``[rows, width]`` and up to three matrices to the product with all of them, one on
    top of the other, and its number of parts.

    Args:
        is_gated: to ``silu`` of the first product times the second one, ``[rows, N]``.

    Returns:
        None if no kernel takes so many rows, such a width, or an odd number of columns.
    """
    sizes = packing.sizes
    tile = row_tile(rows)
    columns = sizes[0] if is_gated else sum(sizes)
    if tile is None or width % TILE_K or columns % 2:
        return None
    own_columns = 4 * TILES if is_gated else 8 * TILES
    blocks = math.ceil(columns / (PRODUCT_WARPS * own_columns))
    splits = 1 if is_gated else count_splits(columns, width, TARGET_BLOCKS)
    inputs, stack = {"x": dtype}, []
    for own in packing.parameters(dtype):
        inputs |= own
        stack.append(f"{{{', '.join(own)}}}")
    ends = {f"end_{index}": sum(sizes[: index + 1]) for index in range(3)}
    kernel = prepare(
        f"multiply<{packing.template}, {tile}, {str(is_gated).lower()}, {TILES}>",
        [
            "x",
            f"moxin::Stack<T>{{{{{', '.join(stack)}}}, {{{', '.join(ends)}}}}}",
            *("rows", "width", "blockIdx.x % splits", "splits"),
            f"(blockIdx.x / splits * {PRODUCT_WARPS} + threadIdx.x / 32) * {own_columns}",
            *("out", "[] {}"),
        ],
        inputs,
        {"out": ((rows, columns), dtype) if is_gated else ((splits, rows, columns), mx.float32)},
        file="rows_product.cu",
        dtype=dtype,
        blocks=blocks * splits,
        threads=MULTIPLY_THREADS,
        scalars={**ends, "rows": rows, "width": width, "splits": splits},
        shared_memory=product_memory(tile),
        min_blocks=2,
    )
    return kernel, splits


@functools.lru_cache
def add_norm(dtype: mx.Dtype, rows: int, width: int, eps: float, splits: int) -> Kernel:
    """A product, residual ``[rows, width]`` and the norm's weight to their sum and its norm."""
    output = ((rows, width), dtype)
    return prepare(
        f"add_norm<T, {width}, {NORM_THREADS}>",
        [
            *("product", "residual", "weight", "splits", "rows", f"{eps}f", "sum", "normed"),
            "blockIdx.x",
        ],
        {"product": mx.float32 if splits else dtype, "residual": dtype, "weight": dtype},
        {"sum": output, "normed": output},
        file="rows_steps.cu",
        dtype=dtype,
        blocks=rows,
        threads=NORM_THREADS,
        scalars={"splits": splits, "rows": rows},
    )


@functools.lru_cache
def rotate(dtype: mx.Dtype, heads: Heads, theta: float, tokens: Tokens, splits: int) -> Kernel:
    """One product (or those of q_proj, k_proj and v_proj if ``splits`` is 0), numbers of cached
    and of hidden tokens, to queries ``[B, T, H, D]`` and keys, rotated, and values
    ``[B, KV, T, D]``.
    """
    queries, keys = heads.queries * heads.width, heads.keys * heads.width
    if splits:
        products, kind = {"q": mx.float32}, "float"
        columns = queries + 2 * keys
        struct = f"q, q + {queries}, q + {queries + keys}, {columns}, {columns}"
    else:
        products, kind = dict.fromkeys("qkv", dtype), "T"
        struct = f"q, k, v, {queries}, {keys}"
    shape = (tokens.batch, heads.keys, tokens.length, heads.width)
    units = tokens.rows * (queries + 2 * keys) // 16
    return prepare(
        f"rotate<T, {heads.width}, {heads.queries}, {heads.keys}>",
        [
            f"moxin::Projected<{kind}>{{{struct}}}",
            *("*filled", "padding", "splits", "rows", "tokens", f"{math.log2(theta)}f"),
            "moxin::Rotated<T>{queries, keys, values, tokens}",
            f"blockIdx.x * {ROTATE_THREADS} + threadIdx.x",
        ],
        {**products, "filled": mx.int32, "padding": mx.int32},
        {
            "queries": ((tokens.batch, tokens.length, heads.queries, heads.width), dtype),
            "keys": (shape, dtype),
            "values": (shape, dtype),
        },
        file="rows_steps.cu",
        dtype=dtype,
        blocks=math.ceil(units / ROTATE_THREADS),
        threads=ROTATE_THREADS,
        scalars={"splits": splits, "rows": tokens.rows, "tokens": tokens.length},
    )


@functools.lru_cache
def attend(dtype: mx.Dtype, heads: Heads, window: int, tokens: Tokens, capacity: int) -> Kernel:
    """Queries, cached keys and values ``[B, KV, capacity, D]``, new ones, numbers of cached and
    of hidden tokens, to ``[rows, H * D]``.
    """
    packed = tokens.length * heads.queries // heads.keys
    count = tokens.batch * heads.keys
    is_many = count * math.ceil(packed / MANY_QUERIES) >= MANY_BLOCKS
    queries = MANY_QUERIES if is_many and packed > FEW_QUERIES else FEW_QUERIES
    tiles = math.ceil(packed / queries)
    arrays = ("keys", "values", "new_keys", "new_values")
    warps = MANY_QUERIES // queries
    return prepare(
        f"attend<T, {heads.width}, {heads.queries}, {heads.keys}, {window}, {warps}>",
        [
            "queries",
            f"moxin::Cache<T>{{{', '.join(arrays)}, *filled, padding, capacity, tokens, tokens}}",
            *("tiles", f"{heads.width**-0.5}f", "out", "blockIdx.x"),
        ],
        {
            **dict.fromkeys(("queries", *arrays), dtype),
            **dict.fromkeys(("filled", "padding"), mx.int32),
        },
        {"out": ((tokens.rows, heads.queries * heads.width), dtype)},
        file="rows_attention.cu",
        dtype=dtype,
        blocks=count * tiles,
        threads=ATTENTION_THREADS,
        scalars={"capacity": capacity, "tokens": tokens.length, "tiles": tiles},
        shared_memory=attention_memory(queries, heads.width),
    )
