"""``VisionModel.engine_blocks``: the layers of both vision towers by a kernel.

For one picture the arithmetic takes less than a millisecond, but MLX records each matrix product
and each attention as a separate graph, which takes 20 us of host time. Here one launch computes
many layers of both towers.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..vision import MLP, Attention, Block, LayerScale
from . import device, kernel, turns
from . import tower_kernel as kernels
from .engine_table import EngineTable
from .errors import UnsupportedError, require
from .fallback import or_none
from .graph import compile_graph
from .kernel import DTYPES
from .tower_tiles import WIDTH_MULTIPLE, Tiles, WarpgroupTiles, find_tiles, usable_tiles

TRAINING = "the model is being trained"


class LayerPair(NamedTuple):
    """A layer of each tower that are computed together, if active."""

    layers: tuple[nn.Module, nn.Module]
    is_active: tuple[bool, bool]


def make_pairs(towers: Sequence[nn.Module]) -> list[LayerPair]:
    """The layers of the two ``towers`` side by side.

    A tower with fewer layers than the other has 0 rows in the remaining layers, which avoids
    compiling a kernel for a single tower.
    """
    return [
        LayerPair(
            tuple(tower.blocks[min(index, len(tower.blocks) - 1)] for tower in towers),
            tuple(index < len(tower.blocks) for tower in towers),
        )
        for index in range(max(len(tower.blocks) for tower in towers))
    ]


def _check_norm(norm: nn.Module, width: int, eps: float, dtype: mx.Dtype) -> None:
    require(type(norm) is nn.LayerNorm and norm.keys() == {"weight", "bias"}, "another norm")
    require(norm.eps == eps, "norms of different eps")
    is_same = all(array.dtype == dtype and array.shape == (width,) for array in norm.values())
    require(is_same, "a norm of another dtype or shape")


def _check_linear(linear: nn.Module, rows: int, columns: int, dtype: mx.Dtype) -> None:
    # Compared by class: adapters, shards and subclasses may compute something else.
    is_known = type(linear) is nn.Linear and linear.keys() == {"weight", "bias"}
    require(is_known, "a matrix is quantised, an adapter, or has no bias")
    shapes = linear.weight.shape, linear.bias.shape
    require(shapes == ((rows, columns), (rows,)), "a matrix of another shape")
    is_same = linear.weight.dtype == dtype and linear.bias.dtype == dtype
    require(is_same, "a matrix of another dtype")


def _check_layer(layer: nn.Module, first: nn.Module, eps: float, dtype: mx.Dtype) -> None:
    """Raise unless the kernel supports ``layer``, given its tower's ``first``."""
    is_known = type(layer) is Block and type(layer.attn) is Attention and type(layer.mlp) is MLP
    require(is_known, "a layer of another class")
    width, inner = first.norm1.weight.shape[0], first.mlp.fc1.weight.shape[0]
    heads = first.attn.num_heads
    require(layer.attn.num_heads == heads and width % heads == 0, "layers with other heads")
    require(layer.mlp.activation == "gelu", "another activation than the exact GELU")
    require(layer.attn.scale == (width // heads) ** -0.5, "scores scaled in another way")
    require(
        all(size % WIDTH_MULTIPLE == 0 for size in (width, inner, width // heads)),
        f"a width is no multiple of {WIDTH_MULTIPLE}",
    )
    for norm in (layer.norm1, layer.norm2):
        _check_norm(norm, width, eps, dtype)
    _check_linear(layer.attn.qkv, 3 * width, width, dtype)
    _check_linear(layer.attn.proj, width, width, dtype)
    _check_linear(layer.mlp.fc1, inner, width, dtype)
    _check_linear(layer.mlp.fc2, width, inner, dtype)
    for scale, other in ((layer.ls1, first.ls1), (layer.ls2, first.ls2)):
        require(type(scale) is type(other), "some layers have no LayerScale")
        if type(scale) is LayerScale:
            is_same = scale.gamma.dtype == dtype and scale.gamma.shape == (width,)
            require(is_same, "a LayerScale of another dtype or shape")
        else:
            require(type(scale) is nn.Identity, "a LayerScale of another class")


def check(pairs: Sequence[LayerPair]) -> None:
    """Raise ``UnsupportedError`` unless the kernel supports the layers."""
    require(device.enabled(), "there is no GPU for the kernels, or they are off")
    require(bool(usable_tiles()), "the GPU has too little shared memory")
    first = pairs[0].layers
    eps, dtype = first[0].norm1.eps, first[0].norm1.weight.dtype
    require(dtype in DTYPES, f"the dtype is {dtype}")
    for pair in pairs:
        for layer, of_tower in zip(pair.layers, first):
            _check_layer(layer, of_tower, eps, dtype)


def supports(pairs: Sequence[LayerPair]) -> bool:
    """Whether the kernel supports the layers."""
    try:
        require(not any(layer.training for pair in pairs for layer in pair.layers), TRAINING)
        check(pairs)
    except UnsupportedError:
        return False
    return True


def _parameters(layer: nn.Module) -> dict[tuple[str, ...], mx.array]:
    """Those of ``PARAMETERS`` that ``layer`` has."""
    found = {path: functools.reduce(dict.get, path, layer) for path in kernels.PARAMETERS}
    return {path: array for path, array in found.items() if array is not None}


def _run(pairs: Sequence[LayerPair], *xs: mx.array) -> list[mx.array]:
    """The tokens ``xs`` ``[B, N, D]`` of both towers after the layers.

    Raises:
        UnsupportedError: if the kernel does not compute them.
    """
    check(pairs)
    dtype = pairs[0].layers[0].norm1.weight.dtype
    require(all(x.dtype == dtype for x in xs), "tokens of another dtype than the layers")
    run = kernels.tower_layers(*kernel_arguments(pairs, [x.shape[:2] for x in xs]))
    flat = [
        array for pair in pairs for layer in pair.layers for array in _parameters(layer).values()
    ]
    outputs = run(kernel.counters(), *xs, *flat)[:2]
    active = [any(pair.is_active[which] for pair in pairs) for which in range(2)]
    return [after if is_active else x for after, x, is_active in zip(outputs, xs, active)]


def kernel_arguments(
    pairs: Sequence[LayerPair], shapes: Sequence[tuple[int, int]]
) -> tuple[mx.Dtype, tuple[kernels.Tower, kernels.Tower], int, float, Tiles | WarpgroupTiles]:
    """Arguments of ``tower_kernel.tower_layers``.

    Args:
        pairs: the layers, which are supported.
        shapes: batch and number of tokens of each tower.
    """
    first = pairs[0].layers
    towers = tuple(
        kernels.Tower(
            *shape,
            layer.norm1.weight.shape[0],
            layer.attn.num_heads,
            layer.mlp.fc1.weight.shape[0],
            sum(pair.is_active[which] for pair in pairs),
            tuple(_parameters(layer)),
        )
        for which, (shape, layer) in enumerate(zip(shapes, first))
    )
    norm = first[0].norm1
    tiles = find_tiles([(t.batch * t.tokens, t.width, t.intermediate) for t in towers])
    return norm.weight.dtype, towers, len(pairs), norm.eps, tiles


def stages(pairs: Sequence[LayerPair]) -> list[Sequence[LayerPair]]:
    """``pairs``, divided into those of one launch each."""
    starts = [0, *range(kernels.FIRST_LAYERS, len(pairs), kernels.LAYERS_AT_ONCE)]
    edges = itertools.pairwise([*starts, len(pairs)])
    return [pairs[start:end] for start, end in edges]


class TowersEngine:
    """The layers of the two ``towers`` of one ``VisionModel``, some per launch, compiled."""

    def __init__(self, towers: Sequence[nn.Module]):
        self._layers = _layers(towers)
        self._stages = []
        for stage in stages(make_pairs(towers)):
            modules = [layer for pair in stage for layer in pair.layers]
            self._stages.append(compile_graph(functools.partial(_run, stage), modules))

    def holds(self, towers: Sequence[nn.Module]) -> bool:
        """Whether the layers are still those of ``towers``."""
        layers = _layers(towers)
        return len(layers) == len(self._layers) and all(
            layer is held for layer, held in zip(layers, self._layers)
        )

    def __call__(self, xs: Sequence[mx.array]) -> list[mx.array]:
        """The tokens ``xs`` ``[B, N, D]`` of both towers after all layers.

        Raises:
            UnsupportedError: if the kernel does not compute the layers.
        """
        mx.async_eval(*xs)  # the GPU embeds the patches while Python records the first layers
        with turns.turn() as launched:
            for stage in self._stages:
                xs = stage(*xs)
                mx.async_eval(xs)
            launched(xs[0])
        return xs


def _layers(towers: Sequence[nn.Module]) -> list[nn.Module]:
    return [layer for tower in towers for layer in tower.blocks]


engines: EngineTable[TowersEngine] = EngineTable()


@or_none("MLX computes the towers")
def blocks(
    model: nn.Module, towers: Sequence[nn.Module], tokens: Sequence[mx.array]
) -> list[mx.array] | None:
    """The tokens of both towers of ``model``, a ``VisionModel``, after all their blocks.

    Args:
        towers: two ``VisionTransformer``.
        tokens: embedded tokens ``[B, N, D]`` of each.

    Returns:
        Tokens of the same shapes; None if the kernel does not compute the blocks.
    """
    require(len(towers) == 2, "the kernel computes two towers")
    require(not model.training, TRAINING)
    make = functools.partial(TowersEngine, towers)
    return engines.find(model, lambda engine: engine.holds(towers), make)(tokens)
