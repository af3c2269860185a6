"""The layers of both vision towers as the kernel reads them, with a strict check of them.

Supported: bfloat16 and float16, plain matrices with biases, and the exact GELU. Everything else
raises ``UnsupportedError`` with the reason.
"""

import functools
import itertools
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..vision import MLP, Attention, Block, LayerScale
from . import device
from . import tower_kernel as kernels
from .errors import UnsupportedError, require
from .joined_arrays import JoinedArrays
from .kernel import DTYPES
from .tower_tiles import WIDTH_MULTIPLE, usable_tiles

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


def _check_classes(layer: nn.Module) -> None:
    """Raise unless ``layer`` has the modules from which the sizes of a tower are read."""
    is_known = type(layer) is Block and type(layer.attn) is Attention and type(layer.mlp) is MLP
    require(is_known, "a layer of another class")
    is_norm = type(layer.norm1) is nn.LayerNorm and "weight" in layer.norm1
    require(is_norm, "another norm")
    is_linear = type(layer.mlp.fc1) is nn.Linear and "weight" in layer.mlp.fc1
    require(is_linear, "a matrix is quantised or an adapter")


def _check_layer(layer: nn.Module, first: nn.Module, eps: float, dtype: mx.Dtype) -> None:
    """Raise unless the kernel supports ``layer``, given its tower's ``first``."""
    _check_classes(layer)
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
    for layer in first:
        _check_classes(layer)
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


def stages(pairs: Sequence[LayerPair]) -> list[Sequence[LayerPair]]:
    """``pairs``, divided into those of one launch each."""
    starts = [0, *range(kernels.FIRST_LAYERS, len(pairs), kernels.LAYERS_AT_ONCE)]
    edges = itertools.pairwise([*starts, len(pairs)])
    return [pairs[start:end] for start, end in edges]


_of_layer = itemgetter("norm1", "norm2", "ls1", "ls2", "attn", "mlp")
_of_attention = itemgetter("qkv", "proj")
_of_mlp = itemgetter("fc1", "fc2")


def joined(pairs: Sequence[LayerPair]) -> JoinedArrays:
    """Layers of one launch, as one array for each tower that has some of them."""
    of_towers = [layers for layers in (active_layers(pairs, which) for which in range(2)) if layers]
    layers = [layer for some in of_towers for layer in some]
    return JoinedArrays(
        lambda: [list(chain.from_iterable(map(places, some))) for some in of_towers],
        lambda: _arrays(layers),
        lambda: check(pairs),
    )


def active_layers(pairs: Sequence[LayerPair], which: int) -> list[nn.Module]:
    """The layers of one tower among ``pairs``."""
    return [pair.layers[which] for pair in pairs if pair.is_active[which]]


def parameters(layer: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Those of ``tower_kernel.PARAMETERS`` that ``layer`` has."""
    return tuple(path for path in kernels.PARAMETERS if path[-1] in _module(layer, path))


def places(layer: nn.Module) -> list[tuple[nn.Module, str]]:
    """Modules of ``layer`` and names of their arrays, in the order of ``parameters``."""
    return [(_module(layer, path), path[-1]) for path in parameters(layer)]


def _module(layer: nn.Module, path: tuple[str, ...]) -> nn.Module:
    return functools.reduce(dict.get, path[:-1], layer)


def _arrays(layers: Sequence[nn.Module]) -> list[mx.array]:
    """What norms and matrices of ``layers`` contain, in any order. This runs for each picture."""
    *others, attentions, mlps = zip(*map(_of_layer, layers))
    matrices = map(_of_attention, attentions), map(_of_mlp, mlps)
    modules = chain.from_iterable(chain(others, *matrices))
    return list(chain.from_iterable(map(dict.values, modules)))
