"""How products and attention are divided among thread blocks, and the memory that this needs.

A product of a kernel is float32 ``[splits, rows, N]``, the sum of which is the product.
"""

import math
from typing import NamedTuple

from . import device
from .projections import Format

# Rows of a product's tile, and those of quantised weights with up to FEW_ROWS rows.
ROW_TILES = (16, 32, 64)
FEW_ROWS = 8
# Tiles of more rows, used with quantised weights for up to MAX_WIDE_ROWS rows. Above that it is
# faster to unpack the weights and to use MLX's product, which is always faster for plain weights
# (docs/speed.md). The unpacked weights of some layers need 2 GB, which smaller GPUs may not have.
WIDE_ROW_TILES = (96, 128)
MAX_WIDE_ROWS = 128
SMALL_MEMORY = 15 * 10**9
SMALL_MAX_WIDE_ROWS = {8: 512, 4: 384}
# Values of K per step of a product.
TILE_K = 128
# The same with few rows and 4 bits, where a step of TILE_K would read only 8 KB of weights.
WIDE_TILE_K = 256
# Warps of a product's thread block, and stages of its input in shared memory.
PRODUCT_WARPS = 8
STAGES = 3
# Tiles of 8 rows of weights per warp in a fused prompt.
TILES = 2
# The same in its gated product, where 4 compute all columns of the real model in one round.
FUSED_GATED_TILES = 4
MAX_SPLITS = 8
MULTIPLY_THREADS = 32 * PRODUCT_WARPS
ATTENTION_WARPS = 4
# Query rows per attention block: few if many would leave multiprocessors idle.
MANY_QUERIES = 64
FEW_QUERIES = 16
# Thread blocks from which no multiprocessor is idle.
MANY_BLOCKS = 128
# Keys per tile, double-buffered; with many query rows so few that three thread blocks, instead of
# two, have room on a multiprocessor of data-centre GPUs.
KEYS = 64
MANY_KEYS = 48
# The above constants that the kernels use.
TILING = {
    "TILE_K": TILE_K,
    "STAGES": STAGES,
    "PRODUCT_WARPS": PRODUCT_WARPS,
    "KEYS": KEYS,
    "ATTENTION_WARPS": ATTENTION_WARPS,
}


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
        form: of the weights.
        rows: of ``x``.
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
    # The one with the fewest unused rows, or the higher one.
    tile = min(fitting, key=lambda tile: (math.ceil(rows / tile) * tile, -tile))
    return Tiling(tile, 4, 1)


def max_wide_rows(bits: int) -> int:
    """Rows up to which a product unpacks its quantised weights itself."""
    return MAX_WIDE_ROWS if device.memory() > SMALL_MEMORY else SMALL_MAX_WIDE_ROWS[bits]


def product_memory(tile: int) -> int:
    """Bytes of shared memory of a product's thread block."""
    return STAGES * tile * TILE_K * 2


def attention_keys(queries: int) -> int:
    """Keys per tile of an attention block with so many query rows."""
    return MANY_KEYS if queries == MANY_QUERIES else KEYS


def attention_memory(queries: int, width: int) -> int:
    """Bytes of shared memory of an attention block: query rows, two tiles of keys and values.

    Args:
        queries: query rows of the block.
        width: of a head.
    """
    return (queries + 4 * attention_keys(queries)) * (2 * width + 16)
