"""The blocks of both vision towers on NVIDIA GPUs, in kernels of our own.

For one picture the arithmetic takes less than a millisecond; what takes time is that MLX
records each product of cuBLAS and each attention as a graph of its own, 20 us of host time.
Here products and norms are kernels, one launch does the same step of both towers, and the GPU
has the first blocks while the next ones are being recorded.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from . import cuda_kernels
from . import cuda_tower_kernels as kernels
from .cuda_kernels import DTYPES

# Blocks of each tower that are handed to the GPU at a time.
BLOCKS_AT_ONCE = 4
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
    if blocks[0].training or not cuda_kernels.is_available():
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
        and len({norm.eps for block in blocks for norm in (block.norm1, block.norm2)}) == 1
        and all(block.norm1.weight.shape[0] // block.attn.num_heads % 8 == 0 for block in blocks)
    )


def _step(
    xs: Sequence[mx.array],
    blocks: Sequence[nn.Module],
    tokens: tuple[kernels.Tokens, kernels.Tokens],
) -> list[mx.array]:
    """One block of each tower for ``xs`` ``[B, N, D]``; 0 rows leave a tower's result undefined."""
    first, second = blocks
    dtype, widths = xs[0].dtype, tuple(x.shape[-1] for x in xs)

    def norm(name: str, xs: Sequence[mx.array]) -> list[mx.array]:
        norms = first[name], second[name]
        kernel = kernels.layer_norms(dtype, tokens, widths, norms[0].eps)
        return kernel(*(a for x, n in zip(xs, norms) for a in (x, n.weight, n.bias)))

    def product(
        epilogue: str,
        xs: Sequence[mx.array],
        path: tuple[str, str],
        scales: str | None = None,
        residuals: Sequence[mx.array] = (),
    ) -> list[mx.array]:
        linears = [block[path[0]][path[1]] for block in blocks]
        gammas = [block[scales].get("gamma") if scales else None for block in blocks]
        arrays = []
        for index, (x, linear, gamma) in enumerate(zip(xs, linears, gammas)):
            arrays += [x, linear.weight, linear.bias]
            arrays += [gamma] if gamma is not None else []
            arrays += residuals[index : index + 1]
        shapes = tuple(linear.weight.shape for linear in linears)
        scaled = tuple(gamma is not None for gamma in gammas)
        return kernels.products(epilogue, dtype, tokens, shapes, scaled)(*arrays)

    qkv = product("BIAS", norm("norm1", xs), ("attn", "qkv"))
    heads = (first.attn.num_heads, second.attn.num_heads)
    attended = kernels.attention(dtype, tokens, heads, widths)(*qkv)
    xs = product("BIAS_SCALE_ADD", attended, ("attn", "proj"), "ls1", xs)
    hidden = product("BIAS_GELU", norm("norm2", xs), ("mlp", "fc1"))
    return product("BIAS_SCALE_ADD", hidden, ("mlp", "fc2"), "ls2", xs)


def _run(pairs: Sequence[Pair], *xs: mx.array) -> list[mx.array]:
    """What the blocks make of their towers' tokens ``xs`` ``[B, N, D]``."""
    results, has_kernels = list(xs), supports(pairs)
    for blocks, is_active in pairs:
        if has_kernels:
            tokens = tuple(
                kernels.Tokens(*x.shape[:2], x.shape[0] * x.shape[1] * active)
                for x, active in zip(results, is_active)
            )
            made = _step(results, blocks, tokens)
        else:
            made = [block(x) for block, x in zip(blocks, results)]
        results = [new if active else old for new, old, active in zip(made, results, is_active)]
    return results


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
        for first in range(0, len(pairs), BLOCKS_AT_ONCE):
            stage = pairs[first : first + BLOCKS_AT_ONCE]
            # As inputs, weights may change after the first call; captured, they may not.
            blocks = [list(pair.blocks) for pair in stage]
            self._compiled.append(mx.compile(functools.partial(_run, stage), inputs=blocks))

    def __call__(self, xs: Sequence[mx.array]) -> list[mx.array]:
        """What the blocks make of their towers' embedded tokens ``xs`` ``[B, N, D]``."""
        for stage in self._compiled:
            xs = stage(*xs)
            mx.async_eval(xs)
        return xs
