"""The blocks of both vision towers on NVIDIA GPUs, in kernels of our own.

For one picture the arithmetic takes less than a millisecond; what takes time is that MLX
records each product of cuBLAS and each attention as a graph of its own, 20 us of host time.
Here one launch does many blocks of both towers.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from . import compiler
from . import tower_kernels as kernels
from .compiler import DTYPES

# Tensor cores read 16 bytes at a time.
WIDTH_MULTIPLE = 8


class Pair(NamedTuple):
    """Blocks of the first and the second tower that are computed together, if active."""

    blocks: tuple[nn.Module, nn.Module]
    is_active: tuple[bool, bool]


def supports(pairs: Sequence[Pair]) -> bool:
    """Whether the kernels compute what the blocks compute.

    They do in bfloat16 and float16 on an NVIDIA GPU; not while training and not with adapters.
    """
    blocks = [block for pair in pairs for block in pair.blocks]
    if blocks[0].training or not compiler.is_available() or kernels.find_tiles() is None:
        return False
    dtype = blocks[0].norm1.weight.dtype
    linears = [
        linear
        for block in blocks
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    ]
    # Adapters and shards are other classes or have other parameters.
    return (
        dtype in DTYPES
        and all(isinstance(linear, nn.Linear) for linear in linears)
        and all(linear.keys() == {"weight", "bias"} for linear in linears)
        and all(linear.weight.dtype == dtype for linear in linears)
        and all(size % WIDTH_MULTIPLE == 0 for linear in linears for size in linear.weight.shape)
        and all(block.mlp.activation == "gelu" for block in blocks)
        and len({norm.eps for block in blocks for norm in (block.norm1, block.norm2)}) == 1
        and all(block.norm1.weight.shape[0] // block.attn.num_heads % 8 == 0 for block in blocks)
    )


def _parameters(block: nn.Module) -> dict[tuple[str, ...], mx.array]:
    """Those of ``PARAMETERS`` that ``block`` has."""
    found = {path: functools.reduce(dict.get, path, block) for path in kernels.PARAMETERS}
    return {path: array for path, array in found.items() if array is not None}


def _run(pairs: Sequence[Pair], *xs: mx.array) -> list[mx.array]:
    """What the blocks make of their towers' tokens ``xs`` ``[B, N, D]``."""
    depths = [sum(pair.is_active[which] for pair in pairs) for which in range(2)]
    if not supports(pairs):
        made = list(xs)
        for which, depth in enumerate(depths):
            for pair in pairs[:depth]:
                made[which] = pair.blocks[which](made[which])
        return made
    arrays = [[_parameters(block) for block in pair.blocks] for pair in pairs]
    first = pairs[0].blocks
    towers = tuple(
        kernels.Tower(
            *x.shape,
            block.attn.num_heads,
            block.mlp.fc1.weight.shape[0],
            depth,
            tuple(parameters),
        )
        for x, block, depth, parameters in zip(xs, first, depths, arrays[0])
    )
    eps, tiles = first[0].norm1.eps, kernels.find_tiles()
    kernel = kernels.blocks(xs[0].dtype, towers, len(pairs), eps, tiles)
    flat = [array for pair in arrays for parameters in pair for array in parameters.values()]
    made = kernel(compiler.block_counter(), *xs, *flat)[:2]
    return [new if depth else old for new, old, depth in zip(made, xs, depths)]


def make_pairs(towers: Sequence[nn.Module]) -> list[Pair]:
    """The blocks of the two ``towers`` side by side.

    A tower with fewer blocks than the other takes part in the rest with 0 rows, which spares
    compiling kernels for one tower alone.
    """
    return [
        Pair(
            tuple(tower.blocks[min(index, len(tower.blocks) - 1)] for tower in towers),
            tuple(index < len(tower.blocks) for tower in towers),
        )
        for index in range(max(len(tower.blocks) for tower in towers))
    ]


class Stages:
    """The blocks of the two ``towers``, a few at a time, compiled."""

    def __init__(self, towers: Sequence[nn.Module]):
        pairs = make_pairs(towers)
        self._compiled = []
        starts = [0, *range(kernels.FIRST_PAIRS, len(pairs), kernels.PAIRS_AT_ONCE)]
        for first, end in itertools.pairwise([*starts, len(pairs)]):
            stage = pairs[first:end]
            # As inputs, weights may change after the first call; captured, they may not.
            blocks = [list(pair.blocks) for pair in stage]
            self._compiled.append(mx.compile(functools.partial(_run, stage), inputs=blocks))

    def __call__(self, xs: Sequence[mx.array]) -> list[mx.array]:
        """What the blocks make of their towers' embedded tokens ``xs`` ``[B, N, D]``."""
        for stage in self._compiled:
            xs = stage(*xs)
            mx.async_eval(xs)
        return xs
