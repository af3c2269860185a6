"""How the products of the vision towers are divided among thread blocks, by the GPU."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from . import device, wgmma

# Of a thread block.
THREADS = 256
# Values of K per step of a product.
TILE_K = 64
# Tensor cores read 16 bytes at a time.
WIDTH_MULTIPLE = 8
# For WarpgroupTiles.estimate, as measured on an H200: microseconds of a step of a round of thread
# blocks and in addition per token of its tiles; bytes per microsecond of sums.
STEP = 0.18
TOKEN_OF_STEP = 0.0033
BYTES = 7.5e6

# Of one tower: rows (tokens of all pictures), width and width within the MLP.
Sizes = tuple[int, int, int]


class Tiles(NamedTuple):
    """How products are divided among the warps of a thread block (tower_matmul.cuh).

    Attributes:
        wide_groups: groups of four warps that share a tile of a wide product.
        narrow_stages: stages of a narrow product.
    """

    wide_groups: int
    narrow_stages: int

    # File of the products; narrow ones do not divide K.
    FILE = "tower_matmul.cuh"
    parts = 0
    # Rows of a product's tile, and columns of a wide and of a narrow product's.
    ROWS = 96
    WIDE_WIDTH = 128
    NARROW_WIDTH = 64
    WIDE_STAGES = 3

    @property
    def shared_memory(self) -> int:
        """Bytes per thread block: as many wide tiles as there are teams."""
        teams = THREADS // 128 // self.wide_groups
        wide = teams * self.WIDE_STAGES * (self.ROWS + self.WIDE_WIDTH) * TILE_K * 2
        narrow = self.narrow_stages * (self.ROWS + self.NARROW_WIDTH) * TILE_K * 2
        return max(wide, narrow)

    @property
    def constants(self) -> dict[str, int]:
        """What the file expects in namespace config."""
        return {
            "TILE_ROWS": self.ROWS,
            "WIDE_WIDTH": self.WIDE_WIDTH,
            "WIDE_STAGES": self.WIDE_STAGES,
            "WIDE_GROUPS": self.wide_groups,
            "NARROW_WIDTH": self.NARROW_WIDTH,
            "NARROW_STAGES": self.narrow_stages,
            "NARROW_GROUPS": 2,
        }

    @property
    def macros(self) -> dict[str, str]:
        """Macros that the file expects."""
        return {}


class WarpgroupTiles(NamedTuple):
    """The same for Hopper GPUs (tower_warpgroups.cuh).

    Attributes:
        stages: of all products.
        columns: tokens of an instruction.
        side_by_side: instructions of a tile.
        parts: into which narrow products divide K (0: undivided).
    """

    stages: int
    columns: int
    side_by_side: int
    parts: int

    FILE = "tower_warpgroups.cuh"
    # Rows of the weight in a tile.
    FEATURES = 128
    ALIGNMENT = 1024

    @property
    def tokens(self) -> int:
        """Rows of x in a tile."""
        return self.side_by_side * self.columns

    @property
    def shared_memory(self) -> int:
        """Bytes per thread block."""
        return self.stages * (self.FEATURES + self.tokens) * TILE_K * 2 + self.ALIGNMENT

    @property
    def constants(self) -> dict[str, int]:
        """What the file expects in namespace config."""
        return {"STAGES": self.stages, "SIDE_BY_SIDE": self.side_by_side}

    @property
    def macros(self) -> dict[str, str]:
        """Macros that the file expects."""
        return wgmma.macros(self.columns, a_in_registers=False)

    def estimate(self, sizes: Sequence[Sizes]) -> float:
        """Microseconds of a layer's products and of what its norms read and write."""

        def multiply(parts: int, products: Sequence[tuple[int, int, int]]) -> float:
            tiles = parts * sum(
                math.ceil(rows / self.tokens) * math.ceil(columns / self.FEATURES)
                for rows, columns, _ in products
            )
            steps = math.ceil(max(width for *_, width in products) / TILE_K / parts)
            rounds = math.ceil(tiles / device.multiprocessors())
            return rounds * steps * (STEP + self.tokens * TOKEN_OF_STEP)

        parts = max(1, self.parts)
        products = (
            multiply(1, [(rows, 3 * width, width) for rows, width, _ in sizes])
            + multiply(parts, [(rows, width, width) for rows, width, _ in sizes])
            + multiply(1, [(rows, inner, width) for rows, width, inner in sizes])
            + multiply(parts, [(rows, width, inner) for rows, width, inner in sizes])
        )
        values = 2 * sum(rows * width for rows, width, _ in sizes)
        return products + values * 8 * self.parts / BYTES


# For one picture, whose narrow products have 34 tiles for 132 multiprocessors; for two or four; for
# eight, whose tiles fill 90 % of the multiprocessors in each round.
HOPPER_TILES = (
    WarpgroupTiles(6, 136, 1, 3),
    WarpgroupTiles(4, 136, 2, 3),
    WarpgroupTiles(4, 152, 2, 0),
)
# For the 227 KB per thread block of other data-centre GPUs, and for the 99 KB of the rest.
TILES = (Tiles(1, 6), Tiles(2, 4))


def find_tiles(sizes: Sequence[Sizes]) -> Tiles | WarpgroupTiles:
    """The fastest of ``usable_tiles`` for towers of these sizes."""
    found = usable_tiles()
    return found[0] if len(found) == 1 else min(found, key=lambda tiles: tiles.estimate(sizes))


def usable_tiles() -> tuple[Tiles | WarpgroupTiles, ...]:
    """Tiles for which the GPU has the instructions and the memory; may be none."""
    has_room = max(tiles.shared_memory for tiles in HOPPER_TILES) <= device.max_shared_memory()
    if device.has_warpgroups() and has_room:
        return HOPPER_TILES
    common = find_common_tiles()
    return () if common is None else (common,)


def find_common_tiles() -> Tiles | None:
    """The first of ``TILES`` for which the GPU has the memory."""
    limit = device.max_shared_memory()
    return next((tiles for tiles in TILES if tiles.shared_memory <= limit), None)
