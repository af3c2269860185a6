"""The blocks of both vision towers on NVIDIA GPUs, in kernels of our own.

For one picture the arithmetic takes less than a millisecond; what takes time is that MLX
records each product of cuBLAS and each attention as a graph of its own, 20 us of host time.
Here products and norms are kernels, and one launch does the same step of both towers.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from . import cuda_kernels

DTYPES = (mx.bfloat16, mx.float16)
# Height of a product's tile and bytes of K that it holds at a time, as in kernels/towers.cu.
TILE_ROWS = 96
STAGE_BYTES = 128


@dataclass(frozen=True)
class Tile:
    """How a product is divided: width of a tile, stages of its pipeline, groups of four warps."""

    width: int
    stages: int
    groups: int

    @property
    def shared_memory(self) -> int:
        return self.stages * (TILE_ROWS + self.width) * STAGE_BYTES


# Of products with more outputs than WIDE two blocks fit on a multiprocessor; of the others
# there is hardly one block for each.
WIDE = 2048
WIDE_TILE = Tile(width=128, stages=3, groups=1)
NARROW_TILE = Tile(width=64, stages=4, groups=2)
GROUP_THREADS = 128
NORM_THREADS = 128
ATTENTION_THREADS = 128
# Queries of an attention block, which holds as many keys and values at a time.
QUERIES = 64
# Tensor cores read 16 bytes at a time.
WIDTH_MULTIPLE = 8


def supports(towers: Sequence[nn.Module]) -> bool:
    """Whether the kernels compute what the two ``towers`` (``VisionTransformer``) compute.

    They do in bfloat16 and float16 on an NVIDIA GPU; not while training and not with adapters.
    """
    dtype = towers[0].pos_embed.dtype
    if any(tower.training for tower in towers) or not cuda_kernels.is_available():
        return False
    blocks = [block for tower in towers for block in tower.blocks]
    linears = [
        linear
        for block in blocks
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    ]
    return (
        dtype in DTYPES
        and all(set(linear) == {"weight", "bias"} for linear in linears)
        and all(isinstance(linear, nn.Linear) for linear in linears)
        and len({norm.eps for block in blocks for norm in (block.norm1, block.norm2)}) == 1
        and all(block.norm1.weight.shape[0] // block.attn.num_heads % 8 == 0 for block in blocks)
        and all(linear.weight.dtype == dtype for linear in linears)
        and all(linear.weight.shape[1] % WIDTH_MULTIPLE == 0 for linear in linears)
        and all(linear.weight.shape[0] % WIDTH_MULTIPLE == 0 for linear in linears)
    )


def _launch(
    call: str,
    arrays: Sequence[dict[str, mx.array | None]],
    widths: Sequence[int],
    sizes: Sequence[dict[str, int]],
    constants: Sequence[str] = ("", ""),
    arguments: Sequence[str] = (),
    **options: Any,
) -> list[mx.array]:
    """A kernel that takes one struct for each tower.

    Args:
        call: as :func:`cuda_kernels.run` takes it.
        arrays: a struct's first members, of which the first array has the output's shape but
            for the width; None for a null pointer.
        widths: of the outputs, which are the next members.
        sizes: the integers that follow.
        constants: a last member, if it is not empty.
        arguments: what follows the structs.
        options: the rest of :func:`cuda_kernels.run`'s.
    """
    inputs, outputs, scalars, structs = {}, {}, {}, []
    for index, (members, width, numbers, last) in enumerate(zip(arrays, widths, sizes, constants)):
        names = [f"{name}_{index}" if a is not None else "nullptr" for name, a in members.items()]
        inputs |= {f"{name}_{index}": a for name, a in members.items() if a is not None}
        x = next(iter(members.values()))
        outputs[f"out_{index}"] = ((*x.shape[:-1], width), x.dtype)
        own = {f"{name}_{index}": number for name, number in numbers.items()}
        scalars |= own
        structs.append(f"{{{', '.join([*names, f'out_{index}', *own, *filter(None, [last])])}}}")
    options |= {"scalars": scalars, "dtype": x.dtype}
    return cuda_kernels.run(call, [*structs, *arguments], inputs, outputs, **options)


def _products(
    epilogue: str,
    xs: Sequence[mx.array],
    linears: Sequence[nn.Linear],
    rows: Sequence[int],
    gammas: Sequence[mx.array | None] = (None, None),
    residuals: Sequence[mx.array | None] = (None, None),
) -> list[mx.array]:
    """``linear(x)`` and what the epilogue makes of it, for ``rows`` rows of each tower."""
    widths = [linear.weight.shape[0] for linear in linears]
    tile = WIDE_TILE if max(widths) > WIDE else NARROW_TILE
    arrays = [
        {"x": x, "weight": linear.weight, "bias": linear.bias, "gamma": gamma, "residual": residual}
        for x, linear, gamma, residual in zip(xs, linears, gammas, residuals)
    ]
    sizes = [{"rows": r, "k": x.shape[-1], "n": n} for r, x, n in zip(rows, xs, widths)]
    return _launch(
        f"products<T, moxin::{epilogue}, {tile.width}, {tile.stages}, {tile.groups}>",
        arrays,
        widths,
        sizes,
        file="towers.cu",
        blocks=sum(
            math.ceil(r / TILE_ROWS) * math.ceil(n / tile.width) for r, n in zip(rows, widths)
        ),
        threads=tile.groups * GROUP_THREADS,
        shared_memory=tile.shared_memory,
    )


def _layer_norms(
    xs: Sequence[mx.array], norms: Sequence[nn.LayerNorm], rows: Sequence[int]
) -> list[mx.array]:
    widths = [x.shape[-1] for x in xs]
    return _launch(
        f"layer_norms<T, {max(widths)}, {NORM_THREADS}>",
        [{"x": x, "weight": norm.weight, "bias": norm.bias} for x, norm in zip(xs, norms)],
        widths,
        [{"rows": r, "width": width} for r, width in zip(rows, widths)],
        arguments=[f"{norms[0].eps}f"],
        file="tower_norm.cu",
        blocks=math.ceil(sum(rows) / (NORM_THREADS // 32)),
        threads=NORM_THREADS,
    )


def _attention(
    qkvs: Sequence[mx.array], attentions: Sequence[nn.Module], rows: Sequence[int]
) -> list[mx.array]:
    """``[B, N, 3 D]`` to ``[B, N, D]``."""
    widths = [qkv.shape[-1] // 3 for qkv in qkvs]
    sizes = [
        {
            "batch": qkv.shape[0] if r else 0,
            "tokens": qkv.shape[1],
            "heads": attention.num_heads,
            "width": width // attention.num_heads,
        }
        for qkv, attention, r, width in zip(qkvs, attentions, rows, widths)
    ]
    head = math.ceil(max(size["width"] for size in sizes) / 16) * 16
    return _launch(
        f"attention<T, {head}>",
        [{"qkv": qkv} for qkv in qkvs],
        widths,
        sizes,
        [f"{attention.scale}f" for attention in attentions],
        file="tower_attention.cu",
        blocks=sum(s["batch"] * s["heads"] * math.ceil(s["tokens"] / QUERIES) for s in sizes),
        threads=ATTENTION_THREADS,
        shared_memory=3 * QUERIES * (2 * head + 16),
    )


def _step(
    xs: Sequence[mx.array], blocks: Sequence[nn.Module], rows: Sequence[int]
) -> list[mx.array]:
    """One block of each tower for ``xs`` ``[B, N, D]``; 0 rows leave a tower's result undefined."""

    def of(*path: str) -> list:
        """The same part of both blocks, None where one has no such part."""
        return [functools.reduce(dict.get, path, block) for block in blocks]

    hidden = _layer_norms(xs, of("norm1"), rows)
    qkv = _products("BIAS", hidden, of("attn", "qkv"), rows)
    attended = _attention(qkv, of("attn"), rows)
    xs = _products("BIAS_SCALE_ADD", attended, of("attn", "proj"), rows, of("ls1", "gamma"), xs)
    hidden = _layer_norms(xs, of("norm2"), rows)
    hidden = _products("BIAS_GELU", hidden, of("mlp", "fc1"), rows)
    return _products("BIAS_SCALE_ADD", hidden, of("mlp", "fc2"), rows, of("ls2", "gamma"), xs)


def run_blocks(towers: Sequence[nn.Module], xs: Sequence[mx.array]) -> list[mx.array]:
    """What the blocks of the two ``towers`` make of their embedded tokens ``xs`` ``[B, N, D]``.

    A tower with fewer blocks than the other takes part in the rest with 0 rows, which spares
    compiling kernels for one tower alone.
    """
    results = list(xs)
    for index in range(max(len(tower.blocks) for tower in towers)):
        is_active = [index < len(tower.blocks) for tower in towers]
        blocks = [tower.blocks[min(index, len(tower.blocks) - 1)] for tower in towers]
        rows = [x.size // x.shape[-1] * active for x, active in zip(xs, is_active)]
        made = _step(results, blocks, rows)
        results = [new if active else old for new, old, active in zip(made, results, is_active)]
    return results
