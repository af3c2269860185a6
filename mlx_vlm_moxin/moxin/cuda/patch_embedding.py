"""``VisionModel.engine_embed``: the input of both towers' first layers by a kernel.

MLX needs fourteen kernels for one picture, two of them convolutions of 70 us on an H200, before the
towers' first layers.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import chain
from operator import is_
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..vision import PatchEmbed, VisionTransformer
from . import device, joined_arrays, kernel, turns
from .engine_table import EngineTable
from .errors import require
from .fallback import or_none
from .joined_arrays import JoinedArrays
from .kernel import C_TYPES, DTYPES, Kernel, fill_table
from .tower_layers import TRAINING
from .tower_tiles import THREADS, TILE_K, WIDTH_MULTIPLE, Tiles, find_common_tiles

CHANNELS = 3
PIXEL_DTYPES = (mx.float32, *DTYPES)
# Of a tower, in the order of moxin::Embedding (embed_patches.cu).
PREFIXES = ("cls_token", "reg_token")


class Embedding(NamedTuple):
    """What a tower adds to its patches, and its sizes.

    Attributes:
        width: of a token.
        class_tokens: 0 or 1.
        register_tokens: after the class token.
    """

    width: int
    class_tokens: int
    register_tokens: int

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches."""
        return self.class_tokens + self.register_tokens

    def shapes(self, patch: int, patches: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the tower's arrays, in their order in its joined one.

        Args:
            patch: side of a patch in pixels.
            patches: of a picture. No offset depends on them.
        """
        counts = zip(PREFIXES, (self.class_tokens, self.register_tokens))
        return {
            "weight": (self.width, patch, patch, CHANNELS),
            "bias": (self.width,),
            **{name: (1, count, self.width) for name, count in counts if count},
            "position": (1, patches, self.width),
        }


@functools.lru_cache
def embed_patches(
    dtype: mx.Dtype,
    pixels: mx.Dtype,
    shape: tuple[int, int, int],
    patch: int,
    towers: tuple[Embedding, Embedding],
    tiles: Tiles,
) -> Kernel:
    """The kernel of the input of both towers' first layers.

    Args:
        dtype: of weights and tokens.
        pixels: of the pixels.
        shape: batch, height and width of the pictures.
        patch: side of a patch in pixels.
        towers: both towers.
        tiles: as from ``tower_tiles.find_common_tiles``.

    Returns:
        A kernel of ``kernel.counters``, the pixels ``[B, 6, H, W]``, and for each tower one array
        (of 32-bit words) that contains those of ``Embedding.shapes``; its first two results are the
        towers' tokens ``[B, N, D]``.
    """
    batch, height, width = shape
    patches = height // patch * (width // patch)
    padded = -(-CHANNELS * patch**2 // 8) * 8
    entries, outputs, scratch = {}, {}, {}
    scalars = {"batch": batch, "height": height, "width": width}
    for which, tower in enumerate(towers):
        shapes = tower.shapes(patch, patches)
        starts = joined_arrays.offsets((shape, dtype) for shape in shapes.values())
        parts = {
            name: f"reinterpret_cast<const {C_TYPES[dtype]}*>(weights_{which} + {start})"
            for name, start in zip(shapes, starts)
        }
        members = ("weight", "bias", "position", *PREFIXES)
        entries[f"[{which}]"] = ", ".join(parts.get(name, "nullptr") for name in members)
        tokens = tower.prefix_tokens + patches
        outputs[f"out_{which}"] = ((batch, tokens, tower.width), dtype)
        scratch[f"patches_{which}"] = ((batch * patches, padded), dtype)
        scratch[f"padded_{which}"] = ((tower.width, padded), dtype)
        scalars[f"width_{which}"] = tower.width
        scalars[f"class_tokens_{which}"] = tower.class_tokens
        scalars[f"prefix_tokens_{which}"] = tower.prefix_tokens
    return kernel.build(
        "embed_patches",
        {
            "T": dtype,
            "Pixel": pixels,
            "PATCH": patch,
            "THREADS": THREADS,
            "TILE_K": TILE_K,
            **tiles.constants,
        },
        [mx.uint32, pixels, mx.uint32, mx.uint32],
        outputs | scratch,
        scalars,
        macros={"FILL_TOWERS(table)": fill_table(entries)},
        blocks=device.multiprocessors(),
        threads=THREADS,
        shared_memory=tiles.shared_memory,
        waits=True,
    )


def _check_tower(tower: nn.Module, first: nn.Module, dtype: mx.Dtype) -> None:
    """Raise unless the kernel supports the embedding of ``tower``, given the ``first``."""
    is_known = type(tower) is VisionTransformer and type(tower.patch_embed) is PatchEmbed
    require(is_known and type(tower.patch_embed.proj) is nn.Conv2d, "another patch embedding")
    require("norm_pre" not in tower, "a norm before the layers")
    require(not tower.config.class_position, "a position embedding of the class token")
    projection = tower.patch_embed.proj
    require("bias" in projection, "a patch embedding without bias")
    width, patch, *others = projection.weight.shape
    require(others == [patch, CHANNELS] and patch % 2 == 0, "patches of another shape")
    is_same = projection.weight.shape[1] == first.patch_embed.proj.weight.shape[1]
    require(is_same, "patches of two sizes")
    settings = projection.stride, projection.padding, projection.dilation, projection.groups
    require(settings == ((patch, patch), (0, 0), 1, 1), "patches that overlap or have gaps")
    require(width % WIDTH_MULTIPLE == 0, f"a width is no multiple of {WIDTH_MULTIPLE}")
    require(all(array.dtype == dtype for array in _arrays(tower)), "another dtype")
    patches = tower.pos_embed.shape[1]
    shapes = find_embedding(tower).shapes(patch, patches).values()
    is_same = all(array.shape == shape for array, shape in zip(_arrays(tower), shapes))
    require(is_same, "an array of another shape")


def _places(tower: nn.Module) -> list[tuple[nn.Module, str]]:
    """Modules and names of the arrays of ``Embedding.shapes``."""
    projection = tower["patch_embed"]["proj"]
    prefixes = [(tower, name) for name in PREFIXES if name in tower]
    return [(projection, "weight"), (projection, "bias"), *prefixes, (tower, "pos_embed")]


def _arrays(tower: nn.Module) -> list[mx.array]:
    return [module[name] for module, name in _places(tower)]


def find_embedding(tower: nn.Module) -> Embedding:
    """Sizes of a tower that the kernel supports."""
    counts = [tower[name].shape[1] if name in tower else 0 for name in PREFIXES]
    return Embedding(tower.pos_embed.shape[-1], *counts)


def check(towers: Sequence[nn.Module]) -> None:
    """Raise ``UnsupportedError`` unless the kernel supports the ``towers``."""
    require(device.enabled(), "there is no GPU for the kernels, or they are off")
    require(find_common_tiles() is not None, "the GPU has too little shared memory")
    require(len(towers) == 2, "the kernel computes two towers")
    dtype = towers[0].pos_embed.dtype
    require(dtype in DTYPES, f"the dtype is {dtype}")
    for tower in towers:
        _check_tower(tower, towers[0], dtype)


def build(towers: Sequence[nn.Module], pixels: mx.Dtype, shape: tuple[int, int, int]) -> Kernel:
    """The kernel of supported ``towers`` for pixels ``[B, 6, H, W]``; ``shape`` is B, H, W."""
    patch = towers[0].patch_embed.proj.weight.shape[1]
    sizes = tuple(find_embedding(tower) for tower in towers)
    dtype = towers[0].pos_embed.dtype
    return embed_patches(dtype, pixels, shape, patch, sizes, find_common_tiles())


class PatchesEngine:
    """The input of the first layers of both ``towers`` of one ``VisionModel``."""

    def __init__(self, towers: Sequence[nn.Module]):
        self._towers = towers = list(towers)
        # Without a reference to this engine, which would then not be freed with its model.
        self._joined = JoinedArrays(
            lambda: map(_places, towers),
            lambda: list(chain.from_iterable(map(_arrays, towers))),
            lambda: check(towers),
        )
        self._kernel: Callable[..., Kernel] | None = None

    def holds(self, towers: Sequence[nn.Module]) -> bool:
        """Whether ``towers`` are still the same."""
        return all(map(is_, towers, self._towers))

    def __call__(self, pixel_values: mx.array) -> list[mx.array]:
        """Tokens of ``pixel_values`` ``[B, 6, H, W]``.

        Raises:
            UnsupportedError: if the kernel does not compute them.
        """
        if self._joined.update():
            self._kernel = functools.lru_cache(maxsize=8)(functools.partial(_find, self._towers))
        run = self._kernel(pixel_values.dtype, pixel_values.shape)
        return run(kernel.counters(), pixel_values, *self._joined.arrays)[:2]


def _find(towers: Sequence[nn.Module], pixels: mx.Dtype, shape: tuple[int, ...]) -> Kernel:
    """The kernel for pixels of that dtype and shape."""
    require(pixels in PIXEL_DTYPES, f"pixels are {pixels}")
    batch, channels, height, width = shape
    require(channels == len(towers) * CHANNELS, "another number of channels")
    patch = towers[0].patch_embed.proj.weight.shape[1]
    patches = height // patch * (width // patch)
    is_same = all(tower.pos_embed.shape[1] == patches for tower in towers)
    require(is_same, "pictures of another size")
    return build(towers, pixels, (batch, height, width))


engines: EngineTable[PatchesEngine] = EngineTable()


@or_none("MLX embeds the patches")
def embed(
    model: nn.Module, towers: Sequence[nn.Module], pixel_values: mx.array
) -> list[mx.array] | None:
    """The input ``[B, N, D]`` of the first layers of both ``towers`` of ``model``.

    Args:
        towers: two ``VisionTransformer``.
        pixel_values: ``[B, 6, H, W]``, three channels for each tower.

    Returns:
        The tokens; None if the kernel does not compute them.
    """
    require(not model.training, TRAINING)
    require(len(towers) == 2, "the kernel computes two towers")
    make = functools.partial(PatchesEngine, towers)
    with turns.turn() as launched:
        tokens = engines.find(model, lambda engine: engine.holds(towers), make)(pixel_values)
        launched(tokens[0])
    return tokens
