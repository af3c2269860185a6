"""How products of prompts on Hopper are divided among thread blocks (kernels/prompt_matmul.cuh).

A block multiplies a pair of tiles of weights by a tile of x, an item, in rounds of the loop over K.
With 132 multiprocessors and 224 items, two rounds of whole items would leave 15 % of them idle.
"""

import functools
import math
from typing import NamedTuple

from . import device
from .tiling import MAX_SPLITS

# As measured on an H200: FLOPs and bytes (of parts, which are written and read) per microsecond,
# and microseconds of beginning an item, and of adding up what another block has begun.
FLOPS = 650e6
BYTES = 3e6
ITEM = 3
HANDOVER = 5


class Division(NamedTuple):
    """One such division.

    Attributes:
        blocks: of the grid.
        shared_items: the first ones, whose rounds all blocks share equally, so that several blocks
            compute some of them; of the other items a block computes whole ones.
        parts: of the product. If there is one, the block with the end of an item adds what the
            block before has computed of it, so that no more than two may share an item.
    """

    blocks: int
    shared_items: int
    parts: int


@functools.lru_cache
def find_division(
    items: int, loops: int, round_flops: int, part_bytes: int, is_gated: bool
) -> Division:
    """The fastest division of a product.

    Args:
        items: of the product.
        loops: rounds of each item.
        round_flops: of a round.
        part_bytes: of a part of the product.
        is_gated: whether the product has one part.
    """
    processors = device.multiprocessors()

    def time(division: Division) -> float:
        blocks, shared, parts = division
        rounds = math.ceil((items - shared) / blocks) * loops + math.ceil(shared * loops / blocks)
        time = rounds * round_flops * processors / FLOPS + ITEM * math.ceil(rounds / loops)
        if parts > 1:
            return time + 2 * parts * part_bytes / BYTES
        return time + (HANDOVER if shared else 0)

    return min(_divisions(items, loops, is_gated, processors), key=time)


@functools.lru_cache
def _divisions(items: int, loops: int, is_gated: bool, processors: int) -> tuple[Division, ...]:
    """Possible divisions."""
    found = [Division(min(items, processors), 0, 1)]
    if items > processors and items % processors:
        # Blocks share between one and two items each.
        whole = (items // processors - 1) * processors
        found.append(Division(processors, items - whole, 1))
    if not is_gated and items < processors:
        for blocks in range(items + 1, min(processors, items * loops) + 1):
            parts = _count_parts(items, loops, blocks)
            if parts <= MAX_SPLITS:
                found.append(Division(blocks, items, parts))
    return tuple(found)


def _count_parts(items: int, loops: int, blocks: int) -> int:
    """The most blocks that share one of ``items`` items."""
    counts = [0] * items
    for block in range(blocks):
        first, end = (items * loops * edge // blocks for edge in (block, block + 1))
        for item in range(first // loops, math.ceil(end / loops)):
            counts[item] += first < end
    return max(counts)
