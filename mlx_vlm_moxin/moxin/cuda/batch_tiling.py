"""How the kernel of batches (``fused_batch``) divides its work and its shared memory."""

import math
from typing import NamedTuple

from . import device
from .decoder_sizes import DecoderSizes
from .projections import Format

# Sequences, at most: the columns of a product of tensor cores.
MAX_BATCH = 8
# A warp multiplies TILE rows of weights at a time, in steps of STEP columns, of which at least
# MIN_BYTES_AHEAD in a thread block are in flight.
STEP = 128
TILE = 16
MIN_BYTES_AHEAD = 64 * 1024


class Tiling(NamedTuple):
    """How a thread block divides its work.

    Attributes:
        warps: of a thread block.
        steps: largest number of steps whose inputs fit into a warp's registers.
        together: steps that are copied together.
        summed: tiles whose parts, which the warps have, are added up together.
        heads: with the same keys that are computed together, where there are more heads than
            multiprocessors.
        keys: that a group of lanes reads at a time.
    """

    warps: int
    steps: int
    together: int
    summed: int
    heads: int
    keys: int


# The fastest ones for Moxin, as measured on an H200, by bits of the weights.
TILINGS = {
    16: Tiling(8, 6, 1, 2, 2, 8),
    8: Tiling(16, 3, 1, 2, 2, 4),
    4: Tiling(16, 3, 2, 2, 2, 4),
}


def find_tiling(sizes: DecoderSizes, form: Format) -> Tiling:
    """The tiling for weights of this format."""
    found = TILINGS[form.bits]
    most = found.heads if MAX_BATCH * sizes.heads > device.multiprocessors() else 1
    found = found._replace(heads=math.gcd(sizes.heads // sizes.kv_heads, most))
    one_slot = found.warps * found.together * STEP
    if max(sizes.hidden, sizes.attended) > one_slot:
        found = found._replace(together=1)
    return found if has_memory(sizes, form, found) else found._replace(together=1, summed=1)


def _slot_bytes(form: Format, tiling: Tiling) -> int:
    """Of a warp's slot: weights and, if they are quantised, scales and biases of some steps."""
    groups = STEP // form.group_size if form.bits < 16 else 0
    return tiling.together * TILE * (STEP * form.bits // 8 + 4 * groups)


def _scratch_bytes(sizes: DecoderSizes, tiling: Tiling) -> int:
    """Shared memory after the weights: as scratch() in batch_products.cuh."""
    warps, heads, width = tiling.warps, tiling.heads, sizes.head_dim
    attention = (heads + 2) * width * 2 + heads * warps * 4 * (width + 2)
    return max(2 * tiling.summed * warps * TILE * MAX_BATCH * 4, attention)


def slots(sizes: DecoderSizes, form: Format, tiling: Tiling) -> int:
    """Slots of a warp for weights that are in flight."""
    room = device.max_shared_memory() - _scratch_bytes(sizes, tiling)
    return room // (tiling.warps * _slot_bytes(form, tiling))


def _bytes_ahead(sizes: DecoderSizes, form: Format, tiling: Tiling) -> int:
    return slots(sizes, form, tiling) * tiling.warps * _slot_bytes(form, tiling)


def has_memory(sizes: DecoderSizes, form: Format, tiling: Tiling) -> bool:
    """Whether enough weights are in flight."""
    return _bytes_ahead(sizes, form, tiling) >= MIN_BYTES_AHEAD


def shared_memory(sizes: DecoderSizes, form: Format, tiling: Tiling) -> int:
    """Bytes per thread block."""
    return _bytes_ahead(sizes, form, tiling) + _scratch_bytes(sizes, tiling)
