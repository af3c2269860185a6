"""The kernels of the vision towers' blocks, prepared for their sizes.

One launch does the same step of both towers. The functions keep what they return: preparing a
kernel takes longer than launching it.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from .cuda_kernels import Kernel, prepare

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


class Tokens(NamedTuple):
    """Of one tower: ``[batch, count, D]``, of which the first ``rows`` are computed."""

    batch: int
    count: int
    rows: int


def _prepare(
    call: str,
    members: Sequence[Sequence[str | None]],
    tokens: Sequence[Tokens],
    widths: Sequence[int],
    sizes: Sequence[dict[str, int]],
    constants: Sequence[str] = ("", ""),
    arguments: Sequence[str] = (),
    **options: Any,
) -> Kernel:
    """A kernel that takes one struct for each tower.

    Args:
        call: as :func:`prepare` takes it.
        members: names of a struct's first members, which are arrays; None for a null pointer.
        widths: of the outputs, which are the next members.
        sizes: the integers that follow.
        constants: a last member, if it is not empty.
        arguments: what follows the structs.
        options: the rest of :func:`prepare`'s.
    """
    dtype, inputs, outputs, scalars, structs = options["dtype"], {}, {}, {}, []
    for index, (names, own) in enumerate(zip(members, tokens)):
        pointers = [f"{name}_{index}" if name else "nullptr" for name in names]
        inputs |= {f"{name}_{index}": dtype for name in names if name}
        outputs[f"out_{index}"] = ((own.batch, own.count, widths[index]), dtype)
        numbers = {f"{name}_{index}": number for name, number in sizes[index].items()}
        scalars |= numbers
        last = [constants[index]] if constants[index] else []
        structs.append(f"{{{', '.join([*pointers, f'out_{index}', *numbers, *last])}}}")
    return prepare(call, [*structs, *arguments], inputs, outputs, scalars=scalars, **options)


@functools.lru_cache
def products(
    epilogue: str,
    dtype: mx.Dtype,
    tokens: tuple[Tokens, Tokens],
    shapes: tuple[tuple[int, int], tuple[int, int]],
    scaled: tuple[bool, bool] = (False, False),
) -> Kernel:
    """``x``, weights ``[N, K]`` and biases, then ``BIAS_SCALE_ADD``'s gamma if ``scaled`` and
    residual, to what the epilogue makes of ``linear(x)``; of the first and the second tower.
    """
    widths = [width for width, _ in shapes]
    tile = WIDE_TILE if max(widths) > WIDE else NARROW_TILE
    residual = "residual" if epilogue == "BIAS_SCALE_ADD" else None
    rows = [own.rows for own in tokens]
    return _prepare(
        f"products<T, moxin::{epilogue}, {tile.width}, {tile.stages}, {tile.groups}>",
        [("x", "weight", "bias", "gamma" if has else None, residual) for has in scaled],
        tokens,
        widths,
        [{"rows": r, "k": k, "n": n} for r, (n, k) in zip(rows, shapes)],
        file="towers.cu",
        dtype=dtype,
        blocks=sum(
            math.ceil(r / TILE_ROWS) * math.ceil(n / tile.width) for r, n in zip(rows, widths)
        ),
        threads=tile.groups * GROUP_THREADS,
        shared_memory=tile.shared_memory,
    )


@functools.lru_cache
def layer_norms(
    dtype: mx.Dtype, tokens: tuple[Tokens, Tokens], widths: tuple[int, int], eps: float
) -> Kernel:
    """``x``, weight and bias of the first and the second tower to norms of ``x``."""
    rows = [own.rows for own in tokens]
    return _prepare(
        f"layer_norms<T, {max(widths)}, {NORM_THREADS}>",
        2 * [("x", "weight", "bias")],
        tokens,
        widths,
        [{"rows": r, "width": width} for r, width in zip(rows, widths)],
        arguments=[f"{eps}f"],
        file="tower_norm.cu",
        dtype=dtype,
        blocks=math.ceil(sum(rows) / (NORM_THREADS // 32)),
        threads=NORM_THREADS,
    )


@functools.lru_cache
def attention(
    dtype: mx.Dtype,
    tokens: tuple[Tokens, Tokens],
    heads: tuple[int, int],
    widths: tuple[int, int],
) -> Kernel:
    """``[B, N, 3 D]`` of the first and the second tower to ``[B, N, D]``."""
    sizes = [
        {
            "batch": own.batch if own.rows else 0,
            "tokens": own.count,
            "heads": count,
            "width": width // count,
        }
        for own, count, width in zip(tokens, heads, widths)
    ]
    head = math.ceil(max(size["width"] for size in sizes) / 16) * 16
    return _prepare(
        f"attention<T, {head}>",
        2 * [("qkv",)],
        tokens,
        widths,
        sizes,
        [f"{size['width'] ** -0.5}f" for size in sizes],
        file="tower_attention.cu",
        dtype=dtype,
        blocks=sum(s["batch"] * s["heads"] * math.ceil(s["tokens"] / QUERIES) for s in sizes),
        threads=ATTENTION_THREADS,
        shared_memory=3 * QUERIES * (2 * head + 16),
    )
