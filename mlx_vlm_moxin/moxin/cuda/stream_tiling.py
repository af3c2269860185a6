"""How ``stream_matmul`` divides a product of up to 64 rows on Hopper among thread blocks."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from . import device
from .projections import Format

# Rows of ``x`` in a product of tensor cores. Up to FEW_ROWS other kernels are used.
FEW_ROWS = 8
ROW_TILES = (16, 32, 64)
# Bits of the weights for which it is faster than ``narrow_matmul``, by the rows above, as measured
# on an H200 (docs/speed.md).
BITS = {16: (4, 8), 32: (4, 8), 64: (4, 8, 16)}
# Values of K per chunk of ``x``, two of which are in shared memory.
CHUNK = 256
# Rows of weights per warp, and warps per warpgroup and at most per thread block.
WARP_ROWS = 16
WARPGROUP = 4
MAX_WARPS = 16
# Parts of K at most.
MAX_SPLITS = 8
# Reading a byte of ``x``, which comes from the cache, in bytes of weights.
X_COST = 0.5
# Stages of weights in shared memory, by the rows above: as many as fit, but not more, which would
# be slower.
MAX_STAGES = {16: 3, 32: 2, 64: 2}
# Chunks whose scales are copied together; those of twice as many are in shared memory.
SPAN = 4
# Bytes of a stage per row of weights.
STAGE_BYTES = 128


class Division(NamedTuple):
    """How a product is divided.

    Attributes:
        rows: of ``x``, with unused ones.
        active: warps of a thread block that have rows of weights.
        splits: parts of K.
        blocks: thread blocks.
        stages: of weights in shared memory.
        shared_memory: bytes per thread block.
    """

    rows: int
    active: int
    splits: int
    blocks: int
    stages: int
    shared_memory: int

    @property
    def warps(self) -> int:
        """Warps per thread block, whole warpgroups."""
        return math.ceil(self.active / WARPGROUP) * WARPGROUP


def applies(form: Format, rows: int, width: int) -> bool:
    """Whether ``x`` ``[rows, width]`` is multiplied by this kernel."""
    if not device.has_warpgroups() or not FEW_ROWS < rows <= ROW_TILES[-1] or width % CHUNK:
        return False
    return form.bits in BITS[_row_tile(rows)]


def _row_tile(rows: int) -> int:
    return next(tile for tile in ROW_TILES if rows <= tile)


def find_division(
    form: Format, columns: int, rows: int, width: int, is_gated: bool
) -> Division | None:
    """The division with the least reading per multiprocessor; None if the kernel does not apply.

    Args:
        form: of the weights.
        columns: of the result.
        rows: of ``x``.
        width: values of K.
        is_gated: whether each column is computed from two rows of weights.
    """
    if not applies(form, rows, width):
        return None
    tile = _row_tile(rows)
    columns_per_warp = WARP_ROWS // 2 if is_gated else WARP_ROWS
    tiles, chunks = math.ceil(columns / columns_per_warp), width // CHUNK
    splits = 1 if is_gated else min(MAX_SPLITS, chunks)
    divisions = _divisions(form, tile, tiles, splits)
    return min(divisions, key=lambda division: _cost(form, division, chunks))


def _divisions(form: Format, rows: int, tiles: int, max_splits: int) -> Iterator[Division]:
    for active in range(1, MAX_WARPS + 1):
        warps = math.ceil(active / WARPGROUP) * WARPGROUP
        stages = next(
            (
                stages
                for stages in range(MAX_STAGES[rows], 1, -1)
                if _shared_memory(form, rows, warps, stages) <= device.max_shared_memory()
            ),
            None,
        )
        if stages is None:
            continue
        memory = _shared_memory(form, rows, warps, stages)
        for splits in range(1, max_splits + 1):
            blocks = math.ceil(tiles / active) * splits
            if splits == 1 or blocks <= device.multiprocessors():
                yield Division(rows, active, splits, blocks, stages, memory)


def _cost(form: Format, division: Division, chunks: int) -> tuple[float, int]:
    """Time in units of a warp's weights of a chunk, and the number of parts for a tie."""
    rounds = math.ceil(division.blocks / device.multiprocessors())
    x = X_COST * division.rows * 16 / (WARP_ROWS * form.bits)
    return rounds * math.ceil(chunks / division.splits) * (division.active + x), division.splits


def _shared_memory(form: Format, rows: int, warps: int, stages: int) -> int:
    """Bytes of ``StreamSizes`` (stream_matmul.cuh)."""
    memory = 2 * CHUNK // 8 * (rows + 1) * 16 + stages * warps * WARP_ROWS * STAGE_BYTES
    if form.bits < 16:
        memory += 2 * SPAN * warps * 2 * WARP_ROWS * CHUNK // form.group_size * 2
    return memory
