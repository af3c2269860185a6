"""The kernels that multiply by plain or quantised matrices, and the one that unpacks the latter.

All functions cache their results, because building a kernel takes longer than launching it.
A product of a kernel is float32 ``[splits, rows, N]``, the sum of which is the product.
"""

import functools
import math

import mlx.core as mx

from . import device, kernel, wgmma
from .kernel import C_TYPES, Kernel
from .projections import Format
from .stream_tiling import Division, find_division
from .tiling import MAX_SPLITS, MULTIPLY_THREADS, PRODUCT_WARPS, TILING, find_tiling

# Threads per block that unpack weights.
UNPACK_THREADS = 256
# Groups of eight weights per thread.
UNPACK_UNITS = 4


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
        dtype: of ``x`` and of the model.
        form: of the matrices.
        matrices: number of rows of each.
        rows: of ``x``.
        width: columns of ``x`` and of the matrices.
        is_gated: compute ``silu`` of the first product times the second one.

    Returns:
        A kernel of ``x`` and of each matrix's arrays (``form.arrays``), and the number of parts of
        its result: float32 ``[parts, rows, sum(matrices)]``; if ``is_gated``, ``[rows, N]`` of
        ``dtype`` in 1 part. None if there is no kernel for this number of rows, this width or an
        odd number of columns.
    """
    columns = matrices[0] if is_gated else sum(matrices)
    division = find_division(form, columns, rows, width, is_gated)
    if division is not None:
        product = _stream(dtype, form, matrices, rows, width, is_gated, division)
        return product, division.splits
    tiling = find_tiling(form, rows, width)
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
        {**ends(matrices), "rows": rows, "width": width, "splits": splits},
        macros=matrix_macros(dtype, form, len(matrices)),
        blocks=blocks * splits,
        threads=MULTIPLY_THREADS,
        shared_memory=tiling.shared_memory,
    )
    return product, splits


def _stream(
    dtype: mx.Dtype,
    form: Format,
    matrices: tuple[int, ...],
    rows: int,
    width: int,
    is_gated: bool,
    division: Division,
) -> Kernel:
    """The product on Hopper; arguments and result as in ``multiply``."""
    threads = 32 * division.warps
    shape = (rows, matrices[0]) if is_gated else (division.splits, rows, sum(matrices))
    output = dtype if is_gated else mx.float32
    return kernel.build(
        "stream_matmul",
        {
            "T": dtype,
            "Output": output,
            "BITS": form.bits,
            "GROUP": form.group_size,
            "ROWS": division.rows,
            "GATED": is_gated,
            "WARPS": division.warps,
            "STAGES": division.stages,
        },
        [dtype, *len(matrices) * form.dtypes(dtype)],
        {"out": (shape, output)},
        {
            **ends(matrices),
            "rows": rows,
            "width": width,
            "splits": division.splits,
            "active": division.active,
        },
        macros={
            **matrix_macros(dtype, form, len(matrices)),
            **wgmma.macros(division.rows),
        },
        blocks=division.blocks,
        threads=threads,
        shared_memory=division.shared_memory,
    )


def ends(matrices: tuple[int, ...]) -> dict[str, int]:
    """Total rows of the matrices up to each of three."""
    return {f"end_{index}": sum(matrices[: index + 1]) for index in range(3)}


def matrix_macros(dtype: mx.Dtype, form: Format, count: int) -> dict[str, str]:
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
    """Unpacks up to three quantised matrices into one plain matrix.

    Args:
        dtype: of the model.
        form: of the matrices.
        matrices: number of rows of each.
        width: columns.

    Returns:
        A kernel of each matrix's arrays (``form.arrays``), to ``[sum(matrices), width]`` of
        ``dtype``.
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
        ends(matrices),
        macros=matrix_macros(dtype, form, len(matrices)),
        blocks=math.ceil(rows * width // 8 / (UNPACK_UNITS * UNPACK_THREADS)),
        threads=UNPACK_THREADS,
    )
