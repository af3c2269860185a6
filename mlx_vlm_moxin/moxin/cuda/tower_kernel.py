"""The kernel that computes many layers of both vision towers in one launch."""

import functools
import math
from typing import NamedTuple

import mlx.core as mx

from . import device, kernel
from .kernel import C_TYPES, Kernel, fill_table
from .tower_tiles import THREADS, TILE_K, Tiles, WarpgroupTiles

# A kernel has 4 KB of parameters, and a layer of both towers up to 28 arrays. The first launch has
# fewer layers, so that the GPU starts while Python records the next. On an H200 6, 10 and 10 layers
# are faster than 4, 11 and 11 or 8, 9 and 9.
FIRST_LAYERS = 6
LAYERS_AT_ONCE = 10
# A layer's arrays, in the order of moxin::TowerLayer (tower_layers.cu).
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
OPTIONAL_PARAMETERS = (("ls1", "gamma"), ("ls2", "gamma"))


class Tower(NamedTuple):
    """Sizes of one tower's tokens ``[batch, tokens, width]`` and layers.

    Attributes:
        depth: number of layers of a launch that the tower has.
        parameters: those of ``PARAMETERS`` that its layers have.
    """

    batch: int
    tokens: int
    width: int
    heads: int
    intermediate: int
    depth: int
    parameters: tuple[tuple[str, ...], ...]

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads


@functools.lru_cache
def tower_layers(
    dtype: mx.Dtype,
    towers: tuple[Tower, Tower],
    count: int,
    eps: float,
    tiles: Tiles | WarpgroupTiles,
) -> Kernel:
    """The kernel of ``count`` layers of both towers.

    Args:
        dtype: of tokens and weights.
        towers: sizes of both towers in this launch.
        eps: of all layer norms.
        tiles: as from ``tower_tiles.find_tiles``.

    Returns:
        A kernel of ``kernel.counters``, the tokens of both towers, and the ``parameters`` of
        the first tower's first layer, the second tower's first layer, the first tower's second
        layer and so on; its first two results are the tokens after the layers.
    """
    parameters, entries = [], {}
    for index in range(count):
        for which, tower in enumerate(towers):
            names = {
                path: f"layer_{index}_{which}_{'_'.join(path)}"
                for path in PARAMETERS
                if path in tower.parameters
            }
            parameters += names.values()
            members = ", ".join(names.get(path, "nullptr") for path in PARAMETERS)
            entries[f"[{index}][{which}]"] = members
    outputs, scalars, scratch = {}, {}, []
    for which, tower in enumerate(towers):
        rows, width = tower.batch * tower.tokens, tower.width
        outputs[f"out_{which}"] = ((tower.batch, tower.tokens, width), dtype)
        values = (width, 3 * width, width, tower.intermediate)  # normed, qkv, attended, hidden
        scratch += [(rows * count, dtype) for count in values]
        scratch.append((tiles.parts * rows * width, mx.float32))
        for name in ("batch", "tokens", "width", "heads", "intermediate", "depth"):
            scalars[f"{name}_{which}"] = getattr(tower, name)
    return kernel.build(
        "tower_layers",
        {
            "T": dtype,
            "WIDTH": max(tower.width for tower in towers),
            "HEAD": math.ceil(max(tower.head_dim for tower in towers) / 16) * 16,
            "LAYERS": count,
            "EPS": eps,
            "THREADS": THREADS,
            "SHARED_MEMORY": tiles.shared_memory,
            "TILE_K": TILE_K,
            "PARTS": tiles.parts,
            **tiles.constants,
        },
        [mx.uint32, dtype, dtype, *[dtype] * len(parameters)],
        outputs | {"scratch": kernel.scratch(*scratch)},
        scalars,
        macros={
            **tiles.macros,
            "TOWER_PRODUCTS": f'"{tiles.FILE}"',
            "LAYER_PARAMETERS": ", ".join(f"const {C_TYPES[dtype]}* {name}" for name in parameters),
            "FILL_LAYERS(table)": fill_table(entries),
        },
        blocks=device.multiprocessors(),
        threads=THREADS,
        shared_memory=tiles.shared_memory,
        waits=True,
    )
