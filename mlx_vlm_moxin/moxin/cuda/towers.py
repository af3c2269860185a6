"""``VisionModel.engine_blocks``: the layers of both vision towers by a kernel.

For one picture the arithmetic takes less than a millisecond, but MLX records each matrix product
and each attention as a separate graph, which takes 20 us of host time. Here one launch computes
many layers of both towers, whose arrays are joined.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from operator import is_

import mlx.core as mx
import mlx.nn as nn

from . import kernel, turns
from . import tower_kernel as kernels
from .engine_table import EngineTable
from .errors import UnsupportedError, require
from .fallback import or_none
from .graph import compile_graph
from .tower_layers import TRAINING, LayerPair, joined, make_pairs, parameters, stages
from .tower_tiles import Tiles, WarpgroupTiles, find_tiles


def _run(pairs: Sequence[LayerPair], *arrays: mx.array) -> list[mx.array]:
    """The tokens ``[B, N, D]`` of both towers after the layers, which are supported.

    Args:
        arrays: the tokens before the layers, and ``JoinedArrays.arrays``.
    """
    xs, weights = arrays[:2], arrays[2:]
    dtype = pairs[0].layers[0].norm1.weight.dtype
    require(all(x.dtype == dtype for x in xs), "tokens of another dtype than the layers")
    run = kernels.tower_layers(*kernel_arguments(pairs, [x.shape[:2] for x in xs]))
    outputs = run(kernel.counters(), *xs, *weights)[:2]
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
            parameters(layer),
        )
        for which, (shape, layer) in enumerate(zip(shapes, first))
    )
    norm = first[0].norm1
    tiles = find_tiles([(t.batch * t.tokens, t.width, t.intermediate) for t in towers])
    return norm.weight.dtype, towers, len(pairs), norm.eps, tiles


class _Stage:
    """The layers of one launch, ``pairs``, compiled."""

    def __init__(self, pairs: Sequence[LayerPair]):
        self._pairs, self._joined = pairs, joined(pairs)
        self._graph: Callable | None = None

    def update(self) -> bool:
        """``JoinedArrays.update`` of the layers."""
        if not self._joined.update():
            return False
        # A new one, since it depends on sizes that the shapes of its inputs may not show.
        self._graph = compile_graph(functools.partial(_run, self._pairs), [])
        return True

    def __call__(self, xs: Sequence[mx.array]) -> list[mx.array]:
        """The tokens ``xs`` after the layers as they were at the last update."""
        arrays = self._joined.arrays
        return self._graph(*xs, *arrays)


class TowersEngine:
    """The layers of the two ``towers`` of one ``VisionModel``, some per launch."""

    def __init__(self, towers: Sequence[nn.Module]):
        self._layers = _layers(towers)
        self._stages = [_Stage(pairs) for pairs in stages(make_pairs(towers))]

    def holds(self, towers: Sequence[nn.Module]) -> bool:
        """Whether the layers are still those of ``towers``."""
        layers = _layers(towers)
        return len(layers) == len(self._layers) and all(map(is_, layers, self._layers))

    def __call__(self, xs: Sequence[mx.array]) -> list[mx.array]:
        """The tokens ``xs`` ``[B, N, D]`` of both towers after all layers.

        Raises:
            UnsupportedError: if the kernel does not compute the layers.
        """
        with turns.turn() as launched:
            outputs = None
            # Comparing the layers takes 0.1 ms of the host's time, so it is done while the GPU
            # computes. If they have changed, this result is of no use.
            with contextlib.suppress(UnsupportedError):
                outputs = self._submit(xs)
            is_other = [stage.update() for stage in self._stages]
            if outputs is None or any(is_other):
                outputs = self._submit(xs)
            launched(outputs[0])
        return outputs

    def _submit(self, xs: Sequence[mx.array]) -> list[mx.array]:
        """The tokens ``xs`` after all layers as they were at the last update."""
        first, *others = self._stages
        xs = first(xs)
        mx.async_eval(xs)  # the GPU starts while Python records the others
        for stage in others:
            xs = stage(xs)
        mx.async_eval(xs)
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
