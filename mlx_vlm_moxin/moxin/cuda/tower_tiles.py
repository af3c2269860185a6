"""How the products of the vision towers are divided among thread blocks, by the GPU."""

from typing import NamedTuple

from . import device

# Of a thread block.
THREADS = 256
# Values of K per step of a product.
TILE_K = 64
# Tensor cores read 16 bytes at a time.
WIDTH_MULTIPLE = 8


class Tiles(NamedTuple):
    """How products are divided among the warps of a thread block (tower_matmul.cuh).

    Attributes:
        wide_groups: groups of four warps that share a tile of a wide product.
        narrow_stages: stages of a narrow product.
    """

    wide_groups: int
    narrow_stages: int

    # File of the products, and the parts into which narrow products divide K (0: undivided).
    FILE = "tower_matmul.cuh"
    PARTS = 0
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


class WarpgroupTiles(NamedTuple):
    """The same for Hopper GPUs (tower_warpgroups.cuh).

    Attributes:
        stages: of all products.
    """

    stages: int

    FILE = "tower_warpgroups.cuh"
    # One picture's narrow products have 34 tiles: 102 of an H200's 132 multiprocessors work.
    PARTS = 3
    # Rows of the weight and of x in a tile.
    FEATURES = 128
    TOKENS = 136
    ALIGNMENT = 1024

    @property
    def shared_memory(self) -> int:
        """Bytes per thread block."""
        return self.stages * (self.FEATURES + self.TOKENS) * TILE_K * 2 + self.ALIGNMENT

    @property
    def constants(self) -> dict[str, int]:
        """What the file expects in namespace config."""
        return {"STAGES": self.stages}


HOPPER_TILES = WarpgroupTiles(6)
# For the 227 KB per thread block of other data-centre GPUs, and for the 99 KB of the rest.
TILES = (Tiles(1, 6), Tiles(2, 4))


def find_tiles() -> Tiles | WarpgroupTiles | None:
    """The first tiles for which the GPU has the instructions and the memory."""
    has_room = HOPPER_TILES.shared_memory <= device.max_shared_memory()
    return HOPPER_TILES if device.has_warpgroups() and has_room else find_common_tiles()


def find_common_tiles() -> Tiles | None:
    """The first of ``TILES`` for which the GPU has the memory."""
    limit = device.max_shared_memory()
    return next((tiles for tiles in TILES if tiles.shared_memory <= limit), None)
