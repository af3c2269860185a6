"""The kernel of many blocks of both vision towers, prepared for their sizes."""

import functools
import math
from typing import NamedTuple

import mlx.core as mx

from . import compiler
from .compiler import Kernel

# As in kernels/towers.cu.
THREADS = 256
# A kernel takes 4 KB of arguments, and a pair of blocks has up to 28 arrays. With fewer in front
# the GPU starts early, and is busy until the next ones are recorded.
FIRST_PAIRS = 4
PAIRS_AT_ONCE = 11
# A block's arrays, in the order of its struct in kernels/towers.cu.
PARAMETERS = (
    ("norm1", "weight"),
    ("norm1", "bias"),
    ("attn", "qkv", "weight"),
    ("attn", "qkv", "bias"),
    ("attn", "proj", "weight"),
    ("attn", "proj", "bias"),
    ("ls1", "gamma"),
    ("norm2", "weight"),
    ("norm2", "bias"),
    ("mlp", "fc1", "weight"),
    ("mlp", "fc1", "bias"),
    ("mlp", "fc2", "weight"),
    ("mlp", "fc2", "bias"),
    ("ls2", "gamma"),
)


class Tiles(NamedTuple):
    """How products are divided, as in kernels/towers.cu.

    Attributes:
        wide_groups: of four warps that share a tile of a wide product.
        narrow_stages: of a narrow product.
        shared_memory: bytes that this takes.
    """

    wide_groups: int
    narrow_stages: int
    shared_memory: int


# The first one for Hopper's 227 KB a block, the second one for the 99 KB of smaller GPUs.
TILES = (Tiles(1, 6, 2 * 3 * (96 + 128) * 128), Tiles(2, 4, 3 * (96 + 128) * 128))


def find_tiles() -> Tiles | None:
    """The first of ``TILES`` for which the GPU has the memory."""
    limit = compiler.max_shared_memory()
    return next((tiles for tiles in TILES if tiles.shared_memory <= limit), None)


class Tower(NamedTuple):
    """Sizes of one tower's tokens ``[batch, tokens, width]`` and blocks.

    Attributes:
        depth: how many of the blocks are the tower's; of the others it takes no notice.
        parameters: those of ``PARAMETERS`` that its blocks have.
    """

    batch: int
    tokens: int
    width: int
    heads: int
    intermediate: int
    depth: int
    parameters: tuple[tuple[str, ...], ...]


@functools.lru_cache
def blocks(
    dtype: mx.Dtype, towers: tuple[Tower, Tower], count: int, eps: float, tiles: Tiles
) -> Kernel:
    """4 zeros, ``x`` of both towers, then the ``parameters`` of the first tower's first block, of
    the second one's, of the first one's second block and so on, to ``x`` behind ``count`` blocks.
    """
    inputs = {"arrivals": mx.uint32, "x_0": dtype, "x_1": dtype}
    statements = []
    for index in range(count):
        for which, tower in enumerate(towers):
            names = {
                path: f"in_{index}_{which}_{'_'.join(path)}"
                for path in PARAMETERS
                if path in tower.parameters
            }
            inputs |= dict.fromkeys(names.values(), dtype)
            members = ", ".join(names.get(path, "nullptr") for path in PARAMETERS)
            statements.append(f"blocks[{index}][{which}] = {{{members}}};")
    outputs, scratch, scalars = {}, {}, {}
    for which, tower in enumerate(towers):
        rows, width = tower.batch * tower.tokens, tower.width
        outputs[f"out_{which}"] = ((tower.batch, tower.tokens, width), dtype)
        widths = {"normed": width, "qkv": 3 * width, "attended": width}
        widths["hidden"] = tower.intermediate
        arrays = {f"{name}_{which}": ((rows, size), dtype) for name, size in widths.items()}
        scratch |= arrays
        names = ("batch", "tokens", "width", "heads", "intermediate", "depth")
        numbers = {f"{name}_{which}": getattr(tower, name) for name in names}
        scalars |= numbers
        scale = (width // tower.heads) ** -0.5
        members = [f"x_{which}", f"out_{which}", *arrays, *numbers, f"{scale}f"]
        statements.append(f"towers[{which}] = {{{', '.join(members)}}};")
    head = math.ceil(max(tower.width // tower.heads for tower in towers) / 16) * 16
    return compiler.prepare(
        f"towers<T, {max(tower.width for tower in towers)}, {head}, {count}, "
        f"{tiles.wide_groups}, {tiles.narrow_stages}>",
        [
            compiler.fill("moxin::TowerBlock<T> (*blocks)[2], moxin::Tower<T>* towers", statements),
            *("const_cast<unsigned int*>(arrivals)", f"{eps}f"),
        ],
        inputs,
        outputs | scratch,
        file="towers.cu",
        dtype=dtype,
        blocks=compiler.multiprocessors(),
        threads=THREADS,
        scalars=scalars,
        shared_memory=tiles.shared_memory,
    )
