"""The kernel that computes many layers of both vision towers in one launch."""

import functools
import math
from typing import NamedTuple

import mlx.core as mx

from . import device, joined_arrays, kernel
from .kernel import C_TYPES, Kernel
from .tower_tiles import THREADS, TILE_K, Tiles, WarpgroupTiles

# Layers of the first launch and of the others: the GPU starts while Python records the next, and
# while the layers of one launch are joined their memory is needed twice. With separate arrays 6, 10
# and 10 layers were faster on an H200 than 4, 11 and 11 or 8, 9 and 9.
FIRST_LAYERS = 6
LAYERS_AT_ONCE = 10
# A layer's arrays, in memory and in the order of moxin::TowerLayer (tower_layers.cu).
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

    @property
    def shapes(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        """Shapes of a layer's ``parameters``."""
        width, inner = self.width, self.intermediate
        others = {
            ("attn", "qkv", "weight"): (3 * width, width),
            ("attn", "qkv", "bias"): (3 * width,),
            ("attn", "proj", "weight"): (width, width),
            ("mlp", "fc1", "weight"): (inner, width),
            ("mlp", "fc1", "bias"): (inner,),
            ("mlp", "fc2", "weight"): (width, inner),
        }
        return {path: others.get(path, (width,)) for path in self.parameters}

    def offsets(self, dtype: mx.Dtype) -> tuple[dict[tuple[str, ...], int], int]:
        """Where the ``parameters`` of a layer begin in its part of an array that contains many
        layers, and the length of that part, in words.
        """
        types = [(shape, dtype) for shape in self.shapes.values()]
        *starts, length = joined_arrays.offsets(types)
        return dict(zip(self.parameters, starts)), length


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
        A kernel of ``kernel.counters``, the tokens of both towers, and for each tower that has
        layers in this launch one array (of 32-bit words) that contains theirs; its first two
        results are the tokens after the layers.
    """
    present = [which for which, tower in enumerate(towers) if tower.depth]
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
        [mx.uint32, dtype, dtype, *[mx.uint32 for _ in present]],
        outputs | {"scratch": kernel.scratch(*scratch)},
        scalars,
        macros={
            **tiles.macros,
            "TOWER_PRODUCTS": f'"{tiles.FILE}"',
            "LAYER_PARAMETERS": ", ".join(f"const unsigned int* weights_{i}" for i in present),
            **{
                f"LAYER_{which}(index)": _members(which, tower, dtype)
                for which, tower in enumerate(towers)
            },
        },
        blocks=device.multiprocessors(),
        threads=THREADS,
        shared_memory=tiles.shared_memory,
        waits=True,
    )


def _members(which: int, tower: Tower, dtype: mx.Dtype) -> str:
    """Members of moxin::TowerLayer for layer ``index`` of ``tower``, after the last one of that."""
    if not tower.depth:
        return ""  # null
    starts, length = tower.offsets(dtype)
    # The depth is a variable, so that launches of as many layers share machine code.
    layer = f"weights_{which} + min(index, depth_{which} - 1) * {length}LL"
    return ", ".join(
        f"reinterpret_cast<const {C_TYPES[dtype]}*>({layer} + {starts[path]})"
        if path in starts
        else "nullptr"
        for path in PARAMETERS
    )
