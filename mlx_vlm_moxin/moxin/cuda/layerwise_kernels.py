"""The kernels of a pass that computes one layer after the other, built for its sizes.

All functions keep what they return, because building a kernel takes longer than launching it.
A product of a kernel is float32 ``[splits, rows, N]``, the sum of which is the product; one of MLX
is ``[rows, N]`` in the model's dtype (``splits`` is 0).
"""

import functools
import math
from typing import NamedTuple

import mlx.core as mx

from . import device, kernel
from .decoder_layers import DecoderSizes, Format
from .kernel import C_TYPES, Kernel

# Rows of a product's tile; of up to FEW_ROWS rows with quantised weights.
ROW_TILES = (16, 32, 64)
FEW_ROWS = 8
# Tiles of more rows are used with quantised weights, and for up to so many rows: beyond that it is
# faster to unpack the weights and to use MLX's product, which is always faster for plain weights
# (docs/speed.md). The unpacked weights of some layers need 2 GB, which smaller GPUs may not have.
WIDE_ROW_TILES = (96, 128)
MAX_WIDE_ROWS = 128
SMALL_MEMORY = 15 * 10**9
SMALL_MAX_WIDE_ROWS = {8: 512, 4: 384}
# Values of K per step of a product, warps of its thread block, and stages of its input.
# WIDE_TILE_K: with few rows and 4 bits, which would need a step for every 8 KB of weights.
TILE_K, WIDE_TILE_K = 128, 256
PRODUCT_WARPS = 8
STAGES = 3
# Tiles of 8 rows of weights per warp in a fused prompt; in its gated product 4 compute all columns
# of the real model in one round.
TILES, FUSED_GATED_TILES = 2, 4
MAX_SPLITS = 8
MULTIPLY_THREADS = 32 * PRODUCT_WARPS
NORM_THREADS = 512
ROTATE_THREADS = 256
# Threads that unpack weights, and how many times eight weights each.
UNPACK_THREADS, UNPACK_UNITS = 256, 4
ATTENTION_WARPS = 4
# Query rows per attention block: 64, or 16 when 64 would leave multiprocessors idle. KEYS: keys per
# tile, double-buffered.
MANY_QUERIES, FEW_QUERIES = 64, 16
MANY_BLOCKS = 128
KEYS = 64
# What the kernels must know of the above.
TILING = {
    "TILE_K": TILE_K,
    "STAGES": STAGES,
    "PRODUCT_WARPS": PRODUCT_WARPS,
    "KEYS": KEYS,
    "ATTENTION_WARPS": ATTENTION_WARPS,
}


class Tokens(NamedTuple):
    """New tokens ``[batch, length]``."""

    batch: int
    length: int

    @property
    def rows(self) -> int:
        return self.batch * self.length


def row_tile(rows: int) -> int | None:
    """Height of the tile for a product of ``rows``; None if there are too many for the kernel."""
    return next((tile for tile in ROW_TILES if rows <= tile), None)


def count_splits(columns: int, width: int, blocks: int) -> int:
    """Parts into which K is divided so that a product occupies up to ``blocks`` thread blocks.

    Args:
        columns: of the product.
        width: values of K.
    """
    needed = math.ceil(columns / (PRODUCT_WARPS * 8 * TILES))
    return max(1, min(blocks // needed, MAX_SPLITS, width // TILE_K))


class Tiling(NamedTuple):
    """How a product is divided.

    Attributes:
        rows: of ``x`` per thread block.
        tiles: of 8 rows of weights per warp.
        min_blocks: thread blocks per multiprocessor, at least (``__launch_bounds__``). K is divided
            into parts as long as all thread blocks run at once.
        width: values of K per step.
        unrolls: whether a step's code is unrolled.
    """

    rows: int
    tiles: int
    min_blocks: int
    width: int = TILE_K
    unrolls: bool = False

    @property
    def shared_memory(self) -> int:
        """Bytes per thread block."""
        return STAGES * self.rows * self.width * 2


def find_tiling(form: Format, rows: int, width: int) -> Tiling | None:
    """The fastest tiling, as measured on an H200; None if there is no kernel for so many rows.

    Args:
        width: values of K.
    """
    tile = row_tile(rows)
    if tile is not None and form.bits == 16:
        return Tiling(tile, 2, 2)
    if tile is not None and tile > ROW_TILES[0]:
        return Tiling(tile, 4, 1, unrolls=tile < ROW_TILES[-1])
    if tile is not None:
        is_wide = form.bits == 4 and width % WIDE_TILE_K == 0
        few = FEW_ROWS if rows <= FEW_ROWS else tile
        return Tiling(few, 2, 2, WIDE_TILE_K if is_wide else TILE_K, unrolls=True)
    if form.bits == 16 or rows > max_wide_rows(form.bits):
        return None
    limit = device.max_shared_memory()
    fitting = [tile for tile in WIDE_ROW_TILES if product_memory(tile) <= limit]
    if not fitting:
        return None
    # The one with the fewest rows left over, or the higher one.
    tile = min(fitting, key=lambda tile: (math.ceil(rows / tile) * tile, -tile))
    return Tiling(tile, 4, 1)


def max_wide_rows(bits: int) -> int:
    """Rows up to which a product unpacks its quantised weights itself."""
    return MAX_WIDE_ROWS if device.memory() > SMALL_MEMORY else SMALL_MAX_WIDE_ROWS[bits]


def product_memory(tile: int) -> int:
    """Bytes of shared memory of a product's thread block."""
    return STAGES * tile * TILE_K * 2


def attention_memory(queries: int, width: int) -> int:
    """Bytes of shared memory of an attention block, for heads of ``width``."""
    return (queries + 4 * KEYS) * (2 * width + 16)


@functools.lru_cache
def multiply(
    dtype: mx.Dtype,
    form: Format,
    matrices: tuple[int, ...],
    rows: int,
    width: int,
    is_gated: bool = False,
) -> tuple[Kernel, int] | None:
    """The product of ``x`` ``[rows, width]`` with up to three matrices, concatenated.

    Args:
        form: of the matrices.
        matrices: number of rows of each.
        is_gated: give ``silu`` of the first product times the second one, ``[rows, N]``.

    Returns:
        A kernel of ``x`` and of the matrices' arrays, and the number of parts of its result. None
        if there is no kernel for so many rows, this width or these columns.
    """
    tiling = find_tiling(form, rows, width)
    columns = matrices[0] if is_gated else sum(matrices)
    if tiling is None or width % tiling.width or columns % 2:
        return None
    warp_columns = (4 if is_gated else 8) * tiling.tiles
    blocks = math.ceil(columns / (PRODUCT_WARPS * warp_columns)) * math.ceil(rows / tiling.rows)
    running = tiling.min_blocks * device.multiprocessors()
    most_splits = min(MAX_SPLITS, width // tiling.width)
    splits = 1 if is_gated else max(1, min(running // blocks, most_splits))
    product = kernel.build(
        "narrow_matmul",
        {
            "T": dtype,
            "Output": dtype if is_gated else mx.float32,
            "BITS": form.bits,
            "GROUP": form.group_size,
            "ROWS": tiling.rows,
            "GATED": is_gated,
            "TILES": tiling.tiles,
            "MIN_BLOCKS": tiling.min_blocks,
            "UNROLL": tiling.unrolls,
            "THREADS": MULTIPLY_THREADS,
            **TILING,
            "TILE_K": tiling.width,
        },
        [dtype, *len(matrices) * form.dtypes(dtype)],
        {"out": ((rows, columns), dtype) if is_gated else ((splits, rows, columns), mx.float32)},
        {**_ends(matrices), "rows": rows, "width": width, "splits": splits},
        macros=_matrix_macros(dtype, form, len(matrices)),
        blocks=blocks * splits,
        threads=MULTIPLY_THREADS,
        shared_memory=tiling.shared_memory,
    )
    return product, splits


def _ends(matrices: tuple[int, ...]) -> dict[str, int]:
    """Total rows of the matrices up to each of three."""
    return {f"end_{index}": sum(matrices[: index + 1]) for index in range(3)}


def _matrix_macros(dtype: mx.Dtype, form: Format, count: int) -> dict[str, str]:
    """Declarations of the arrays of ``count`` matrices, and the matrices as initialisers."""
    names = [[f"{name}_{index}" for name in form.arrays] for index in range(count)]
    parameters = [
        f"const {C_TYPES[kind]}* {name}"
        for matrix in names
        for name, kind in zip(matrix, form.dtypes(dtype))
    ]
    return {
        "MATRIX_PARAMETERS": ", ".join(parameters),
        "MATRICES": ", ".join(f"{{{', '.join(matrix)}}}" for matrix in names),
    }


@functools.lru_cache
def unpack_weights(dtype: mx.Dtype, form: Format, matrices: tuple[int, ...], width: int) -> Kernel:
    """A kernel of the arrays of up to three quantised matrices with ``width`` columns, to all of
    them as one plain matrix ``[sum(matrices), width]``.
    """
    rows = sum(matrices)
    return kernel.build(
        "unpack_weights",
        {
            "T": dtype,
            "BITS": form.bits,
            "GROUP": form.group_size,
            "WIDTH": width,
            "UNITS": UNPACK_UNITS,
            "THREADS": UNPACK_THREADS,
        },
        [*len(matrices) * form.dtypes(dtype)],
        {"out": ((rows, width), dtype)},
        _ends(matrices),
        macros=_matrix_macros(dtype, form, len(matrices)),
        blocks=math.ceil(rows * width // 8 / (UNPACK_UNITS * UNPACK_THREADS)),
        threads=UNPACK_THREADS,
    )


@functools.lru_cache
def add_norm(dtype: mx.Dtype, rows: int, width: int, eps: float, splits: int) -> Kernel:
    """A kernel of a product, the residual ``[rows, width]`` and a norm's weight, to their sum and
    its norm.
    """
    product = mx.float32 if splits else dtype
    return kernel.build(
        "add_norm",
        {"T": dtype, "Product": product, "WIDTH": width, "EPS": eps, "THREADS": NORM_THREADS},
        [product, dtype, dtype],
        {"sum": ((rows, width), dtype), "normed": ((rows, width), dtype)},
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
    """A kernel that rotates queries and keys.

    Args:
        product: dtype of the products.
        splits: parts of one product with all columns; 0 for three products.

    Returns:
        A kernel of the products of q_proj, k_proj and v_proj (three times the same one if
        ``splits``) and the numbers of cached and of masked tokens, to queries ``[B, T, H, D]``,
        keys and values ``[B, KV, T, D]``.
    """
    dtype = sizes.dtype
    shape = (tokens.batch, sizes.kv_heads, tokens.length, sizes.head_dim)
    units = tokens.rows * (sizes.attended + 2 * sizes.keys) // 16
    return kernel.build(
        "rotate",
        {**rotation_constants(sizes, product), "THREADS": ROTATE_THREADS},
        [product, product, product, mx.int32, mx.int32],
        {
            "queries": ((tokens.batch, tokens.length, sizes.heads, sizes.head_dim), dtype),
            "keys": (shape, dtype),
            "values": (shape, dtype),
        },
        {"rows": tokens.rows, "tokens": tokens.length, "splits": splits},
        blocks=math.ceil(units / ROTATE_THREADS),
        threads=ROTATE_THREADS,
    )


def count_queries(sizes: DecoderSizes, tokens: Tokens) -> int:
    """Query rows of an attention block for so many new tokens."""
    packed = tokens.length * sizes.heads // sizes.kv_heads
    blocks = tokens.batch * sizes.kv_heads * math.ceil(packed / MANY_QUERIES)
    has_memory = attention_memory(MANY_QUERIES, sizes.head_dim) <= device.max_shared_memory()
    is_many = has_memory and blocks >= MANY_BLOCKS and packed > FEW_QUERIES
    return MANY_QUERIES if is_many else FEW_QUERIES


@functools.lru_cache
def attend(sizes: DecoderSizes, tokens: Tokens, capacity: int) -> Kernel:
    """A kernel of queries, cached keys and values ``[B, KV, capacity, D]``, new ones, and the
    numbers of cached and of masked tokens, to ``[rows, H * D]``.
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
            **TILING,
        },
        [dtype, dtype, dtype, dtype, dtype, mx.int32, mx.int32],
        {"out": ((tokens.rows, sizes.attended), dtype)},
        {"capacity": capacity, "tokens": tokens.length, "tiles": tiles},
        blocks=tokens.batch * sizes.kv_heads * tiles,
        threads=32 * ATTENTION_WARPS,
        shared_memory=attention_memory(queries, sizes.head_dim),
    )
