"""Products of prompts on Hopper (kernels/prompt_matmul.cuh).

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
from .prompt_division import find_division

# As in kernels/prompt_matmul.cuh: values of K per round of its loop, rows of weights of a block.
LOOP_K = 256
BLOCK_ROWS = 128
TILE_ROWS = 64
THREADS = 384
# Stages of x at most, and bytes of them; more leave less of an L1 cache: shared memory has 164 kB
# then, or the next larger size. Stages that contain plain weights may have all of it.
MAX_STAGES = 8
STAGE_MEMORY = 165_000
PLAIN_STAGE_MEMORY = 226 * 1024
# Shared memory of a stage's barriers, and of aligning the stages to 1,024 bytes.
BARRIERS = 16
ALIGNMENT = 1024
# Below this number of rows other kernels are faster, and above it MLX's product, of weights that
# are unpacked first: estimated from the gated and down product of 512 rows, where each row needs
# 0.51 us at 8 bits and 0.52 at 4 bits, and MLX's product 0.46 and 137 or 117 for unpacking. With
# plain weights both are about as fast, but MLX's needs 20 us of host time, and for some numbers of
# rows half as much time again (docs/speed.md).
MIN_ROWS = 65
MAX_ROWS = {16: 448, 8: 1500, 4: 2000}
# What each tile needs in addition, for its weights to be unpacked, as rows of x.
TILE_COST = 40
# Possible rows of x of a tile. Registers hold no more, and each number needs its own kernels.
TOKENS = range(96, 321, 16)


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


def flags() -> mx.array:
    """Zeros for the products of a pass that do not run at the same time (``Handover``)."""
    return mx.zeros(BLOCK_ROWS // TILE_ROWS * device.multiprocessors(), mx.uint32)


def part_dtype(dtype: mx.Dtype) -> mx.Dtype:
    """The dtype of a product's parts in a pass: the time to write and read them counts.

    Rounding a few parts to bfloat16 costs about as much accuracy as rounding their sum, as modules
    do. A part may exceed float16's range although the sum does not.

    Args:
        dtype: of the model.
    """
    return dtype if dtype == mx.bfloat16 else mx.float32


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
    part: mx.Dtype = mx.float32,
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
        part: dtype of the parts of a product that is not gated.

    Returns:
        A kernel of the arranged ``x``, of each matrix's arrays (``form.arrays``) and of ``flags``,
        and the number of parts of its first result: ``[parts, rows, sum(matrices)]`` of
        ``part``; if ``is_gated``, ``[rows, N]`` of ``dtype`` in 1 part, arranged if there is a
        ``next_order``.
        What blocks leave for others is the second result.
    """
    columns = matrices[0] if is_gated else sum(matrices)
    items = math.ceil(sum(matrices) / BLOCK_ROWS) * math.ceil(rows / order.tokens)
    round_flops = 2 * LOOP_K * BLOCK_ROWS * order.tokens
    output = dtype if is_gated else part
    part_bytes = output.size * rows * columns
    division = find_division(items, width // LOOP_K, round_flops, part_bytes, is_gated)
    parts = division.parts
    shape = parts, rows, columns
    if is_gated:
        shape = (rows, columns) if next_order is None else next_order.shape(rows, columns)
    hands_over = parts == 1 and division.shared_items > 0
    handed = (division.blocks if hands_over else 1, BLOCK_ROWS, order.tokens)
    is_plain = form.bits == 16
    stage = (order.tokens + is_plain * BLOCK_ROWS) * PIECE * dtype.size + BARRIERS
    stages = min(MAX_STAGES, (PLAIN_STAGE_MEMORY if is_plain else STAGE_MEMORY) // stage)
    product = kernel.build(
        "prompt_matmul",
        {
            "T": dtype,
            "Output": output,
            "BITS": form.bits,
            "GROUP": form.group_size,
            "COUNT": len(matrices),
            "GATED": is_gated,
            "TOKENS": order.tokens,
            "STAGES": stages,
            "OUT_BITS": 0 if next_order is None else next_order.bits,
            "THREADS": THREADS,
        },
        [dtype, *len(matrices) * form.dtypes(dtype), mx.uint32],
        {"out": (shape, output), "handed": (handed, mx.float32)},
        {
            **matmul_kernels.ends(matrices),
            "rows": rows,
            "width": width,
            "parts": parts,
            "shared_items": division.shared_items,
        },
        macros={
            **matmul_kernels.matrix_macros(dtype, form, len(matrices)),
            **wgmma.macros(order.tokens // 2),
        },
        blocks=division.blocks,
        threads=THREADS,
        shared_memory=ALIGNMENT + stages * stage,
    )
    return product, parts
