"""Products of quantised weights and prompts on Hopper (kernels/prompt_matmul.cuh).

All functions cache their results, because building a kernel takes longer than launching it.
"""

import functools
import math

import mlx.core as mx

from . import device, kernel, matmul_kernels, wgmma
from .arranged import PIECE, Order
from .decoder_sizes import DecoderSizes
from .kernel import Kernel
from .projections import Format
from .tiling import MAX_SPLITS

# As in kernels/prompt_matmul.cuh: values of K per round of its loop, rows of weights of a block.
LOOP_K = 256
BLOCK_ROWS = 128
THREADS = 384
# Stages of x at most, and bytes of them; more leave less of an L1 cache.
MAX_STAGES = 8
STAGE_MEMORY = 150_000
# Shared memory of a stage's barriers, and of aligning the stages to 1,024 bytes.
BARRIERS = 16
ALIGNMENT = 1024
# Below this number of rows other kernels are faster, and above it unpacking the weights for MLX's
# product is: computed from times of 288 and 512 rows, where each row needs 0.61 us at 8 bits and
# 0.52 at 4 bits (gated and down product), and MLX's product 0.46 and 137 or 117 for unpacking.
MIN_ROWS = 65
MAX_ROWS = {8: 900, 4: 2000}
# What each tile needs in addition, for its weights to be unpacked, as rows of x.
TILE_COST = 40
# Possible rows of x of a tile. Registers hold at most 288, and each number needs its own kernels.
TOKENS = (96, 160, 224, 256, 288)
# For choosing the parts of K: FLOPs and bytes (of parts, which are written and read) per
# microsecond, and microseconds of a round of thread blocks, as measured on an H200.
FLOPS = 650e6
BYTES = 3e6
ROUND = 3


@functools.lru_cache
def find_order(sizes: DecoderSizes, form: Format, rows: int) -> Order | None:
    """The order of ``rows`` rows of x for the products of a decoder's layers.

    Args:
        sizes: of the decoder.
        form: of the weights.
        rows: of x.

    Returns:
        None if there are no kernels for them.
    """
    widths = sizes.hidden, sizes.attended, sizes.intermediate
    is_divided = not any(width % LOOP_K for width in widths)
    is_faster = MIN_ROWS <= rows <= MAX_ROWS.get(form.bits, 0)
    if not is_faster or not is_divided or not device.has_warpgroups():
        return None
    tokens = min(TOKENS, key=lambda tokens: math.ceil(rows / tokens) * (tokens + TILE_COST))
    return Order(form.bits, tokens)


@functools.lru_cache
def count_splits(columns: int, order: Order, rows: int, width: int) -> int:
    """Parts of K with which a product is fastest.

    Args:
        columns: of the product.
        order: of x.
        rows: of x.
        width: values of K.
    """
    items = math.ceil(columns / BLOCK_ROWS) * math.ceil(rows / order.tokens)
    blocks, loops = device.multiprocessors(), width // LOOP_K

    def time(splits: int) -> float:
        rounds = math.ceil(items * splits / blocks)
        flops = math.ceil(loops / splits) * LOOP_K * BLOCK_ROWS * order.tokens * 2
        parts = 8 * splits * rows * columns
        return rounds * (flops * blocks / FLOPS + ROUND) + parts / BYTES

    return min(range(1, min(MAX_SPLITS, loops) + 1), key=time)


@functools.lru_cache
def multiply(
    dtype: mx.Dtype,
    form: Format,
    matrices: tuple[int, ...],
    order: Order,
    rows: int,
    width: int,
    next_order: Order | None = None,
    is_gated: bool = False,
) -> tuple[Kernel, int]:
    """The product of an arranged ``x`` with up to three matrices, concatenated.

    Args:
        dtype: of ``x`` and of the model.
        form: of the matrices.
        matrices: number of rows of each.
        order: of ``x``.
        rows: of ``x``.
        width: columns of ``x`` and of the matrices, a multiple of ``LOOP_K``.
        next_order: in which to give a gated product.
        is_gated: compute ``silu`` of the first product times the second one.

    Returns:
        A kernel of the arranged ``x`` and of each matrix's arrays (``form.arrays``), and the number
        of parts of its result: float32 ``[parts, rows, sum(matrices)]``; if ``is_gated``,
        ``[rows, N]`` of ``dtype`` in 1 part, arranged if there is a ``next_order``.
    """
    columns = matrices[0] if is_gated else sum(matrices)
    splits = 1 if is_gated else count_splits(columns, order, rows, width)
    shape, output = (splits, rows, columns), mx.float32
    if is_gated:
        output = dtype
        shape = (rows, columns) if next_order is None else next_order.shape(rows, columns)
    items = math.ceil(sum(matrices) / BLOCK_ROWS) * math.ceil(rows / order.tokens) * splits
    stage = order.tokens * PIECE * dtype.size + BARRIERS
    stages = min(MAX_STAGES, STAGE_MEMORY // stage)
    product = kernel.build(
        "prompt_matmul",
        {
            "T": dtype,
            "Output": output,
            "BITS": form.bits,
            "GROUP": form.group_size,
            "GATED": is_gated,
            "TOKENS": order.tokens,
            "STAGES": stages,
            "OUT_BITS": 0 if next_order is None else next_order.bits,
            "THREADS": THREADS,
        },
        [dtype, *len(matrices) * form.dtypes(dtype)],
        {"out": (shape, output)},
        {
            **matmul_kernels.ends(matrices),
            "rows": rows,
            "width": width,
            "splits": splits,
        },
        macros={
            **matmul_kernels.matrix_macros(dtype, form, len(matrices)),
            **wgmma.macros(order.tokens // 2),
        },
        blocks=min(items, device.multiprocessors()),
        threads=THREADS,
        shared_memory=ALIGNMENT + stages * stage,
    )
    return product, splits
