"""The blocks of both vision towers on NVIDIA GPUs, in kernels of our own.

For one picture the arithmetic takes less than a millisecond; what takes time is that MLX
records each product of cuBLAS and each attention as a graph of its own, 20 us of host time.
Here products and norms are kernels, and one launch does the same step of both towers.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

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


def _products(
    epilogue: str,
    xs: Sequence[mx.array],
    linears: Sequence[nn.Linear],
    rows: Sequence[int],
    gammas: Sequence[mx.array | None] = (None, None),
    residuals: Sequence[mx.array | None] = (None, None),
) -> list[mx.array]:
    """``linear(x)`` and what the epilogue makes of it, for ``rows`` rows of each tower."""
    is_wide = max(linear.weight.shape[0] for linear in linears) > WIDE
    tile = WIDE_TILE if is_wide else NARROW_TILE
    inputs, outputs, scalars, products, blocks = {}, {}, {}, [], 0
    for index, (x, linear) in enumerate(zip(xs, linears)):
        n, k = linear.weight.shape
        arrays = {"x": x, "weight": linear.weight, "bias": linear.bias}
        arrays |= {"gamma": gammas[index], "residual": residuals[index]}
        members = [f"{name}_{index}" if arrays[name] is not None else "nullptr" for name in arrays]
        inputs |= {f"{name}_{index}": a for name, a in arrays.items() if a is not None}
        outputs[f"out_{index}"] = ((*x.shape[:-1], n), x.dtype)
        sizes = {f"rows_{index}": rows[index], f"k_{index}": k, f"n_{index}": n}
        scalars |= sizes
        products.append(f"{{{', '.join([*members, f'out_{index}', *sizes])}}}")
        blocks += math.ceil(rows[index] / TILE_ROWS) * math.ceil(n / tile.width)
    return cuda_kernels.run(
        f"products<T, moxin::{epilogue}, {tile.width}, {tile.stages}, {tile.groups}>",
        products,
        inputs,
        outputs,
        scalars=scalars,
        file="towers.cu",
        dtype=xs[0].dtype,
        blocks=blocks,
        threads=tile.groups * GROUP_THREADS,
        shared_memory=tile.shared_memory,
    )


def _layer_norms(
    xs: Sequence[mx.array], norms: Sequence[nn.LayerNorm], rows: Sequence[int]
) -> list[mx.array]:
    inputs, outputs, scalars, arguments = {}, {}, {}, []
    for index, (x, norm) in enumerate(zip(xs, norms)):
        arrays = {"x": x, "weight": norm.weight, "bias": norm.bias}
        inputs |= {f"{name}_{index}": array for name, array in arrays.items()}
        outputs[f"out_{index}"] = (x.shape, x.dtype)
        sizes = {f"rows_{index}": rows[index], f"width_{index}": x.shape[-1]}
        scalars |= sizes
        members = [f"{name}_{index}" for name in (*arrays, "out")]
        arguments.append(f"{{{', '.join([*members, *sizes])}}}")
    return cuda_kernels.run(
        f"layer_norms<T, {max(x.shape[-1] for x in xs)}, {NORM_THREADS}>",
        [*arguments, f"{norms[0].eps}f"],
        inputs,
        outputs,
        scalars=scalars,
        file="tower_norm.cu",
        dtype=xs[0].dtype,
        blocks=math.ceil(sum(rows) / (NORM_THREADS // 32)),
        threads=NORM_THREADS,
    )


def _attention(
    qkvs: Sequence[mx.array], attentions: Sequence[nn.Module], rows: Sequence[int]
) -> list[mx.array]:
    """``[B, N, 3 D]`` to ``[B, N, D]``."""
    inputs, outputs, scalars, arguments, blocks, widths = {}, {}, {}, [], 0, []
    for index, (qkv, attention) in enumerate(zip(qkvs, attentions)):
        batch, tokens, width = qkv.shape
        batch, heads = batch if rows[index] else 0, attention.num_heads
        inputs[f"qkv_{index}"] = qkv
        outputs[f"out_{index}"] = ((*qkv.shape[:-1], width // 3), qkv.dtype)
        numbers = {"batch": batch, "tokens": tokens, "heads": heads, "width": width // 3 // heads}
        sizes = {f"{name}_{index}": number for name, number in numbers.items()}
        scalars |= sizes
        members = [f"qkv_{index}", f"out_{index}", *sizes, f"{attention.scale}f"]
        arguments.append(f"{{{', '.join(members)}}}")
        blocks += batch * heads * math.ceil(tokens / QUERIES)
        widths.append(numbers["width"])
    head = math.ceil(max(widths) / 16) * 16
    return cuda_kernels.run(
        f"attention<T, {head}>",
        arguments,
        inputs,
        outputs,
        scalars=scalars,
        file="tower_attention.cu",
        dtype=qkvs[0].dtype,
        blocks=blocks,
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
