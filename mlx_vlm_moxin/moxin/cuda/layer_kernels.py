"""What the kernels that take many layers in one launch have in common."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx

from ..config import TextConfig
from . import compiler
from .decoder_weights import Block, Packing

# A kernel takes 4 KB of arguments, and a layer has up to 23 arrays.
LAYERS_AT_ONCE = 18

Packings = tuple[Packing, Packing, Packing, Packing]


def packings(block: Block) -> Packings:
    """Those of q/k/v, output, gate/up and down projection."""
    return tuple(part.packing for part in block.parts)


def groups(blocks: Sequence[Block]) -> Iterator[slice]:
    """Layers that one launch takes: as many as fit of those that are packed alike."""
    for _, alike in itertools.groupby(range(len(blocks)), lambda index: packings(blocks[index])):
        first, *_, last = 2 * list(alike)
        for start in range(first, last + 1, LAYERS_AT_ONCE):
            yield slice(start, min(start + LAYERS_AT_ONCE, last + 1))


def arrays(blocks: Sequence[Block]) -> list[mx.array]:
    """Those of ``blocks``, in the order in which a kernel takes them."""
    return [
        array
        for block in blocks
        for array in (
            *(block.input_norm, *block.qkv.arrays, *block.output.arrays),
            *(block.post_norm, *block.gate_up.arrays, *block.down.arrays),
        )
    ]


def prepare(
    name: str,
    config: TextConfig,
    packed: Packings,
    count: int,
    first: int,
    capacity: int,
    outputs: dict[str, tuple[tuple[int, ...], mx.Dtype]],
    *,
    dtype: mx.Dtype,
    template: Sequence[int] = (),
    arguments: Sequence[str] = (),
    scalars: dict[str, int] | None = None,
    **options: Any,
) -> compiler.Kernel:
    """The kernel ``name`` of ``count`` layers (kernels/layer.cu), for :func:`launch`.

    Args:
        packed: how all of the layers are.
        first: the first layer's number.
        capacity: of the caches.
        outputs: names, shapes and dtypes; the first one is ``x`` behind the layers.
        template: template arguments that follow ``count``.
        arguments: what stands in front of ``outputs``.
        options: the rest of :func:`compiler.prepare`'s.
    """
    inputs = {"x": dtype, "filled": mx.int32, "arrivals": mx.uint32, "stacked": dtype}
    layers = []
    for index in range(count):
        members = []
        for part, packing in zip(("qkv", "output", "gate_up", "down"), packed):
            prefix = f"{part}_{index}_"
            # A norm stands in front of the first projections of attention and MLP.
            if part in ("qkv", "gate_up"):
                inputs[f"{prefix}norm"] = dtype
                members.append(f"{prefix}norm")
            for matrix in packing.parameters(dtype, prefix):
                inputs |= matrix
                members.append(f"{{{', '.join(matrix)}}}")
        layers.append(f"own[{index}] = {{{', '.join(members)}}};")
    widths = (config.hidden_size, config.intermediate_size, config.head_dim)
    heads = (config.num_attention_heads, config.num_key_value_heads)
    sizes = ", ".join(map(str, (*widths, *heads, config.sliding_window or 0)))
    formats = [f"moxin::Packing<{own.bits}, {own.group_size}>" for own in packed]
    constants = [*formats, *map(str, (count, *template))]
    theta, scale = math.log2(config.rope_theta), config.head_dim**-0.5
    return compiler.prepare(
        f"{name}<T, moxin::Sizes<{sizes}>, {', '.join(constants)}>",
        [
            compiler.fill("moxin::Layer<T>* own", layers),
            *("x", "filled", "const_cast<unsigned int*>(arrivals)", "const_cast<T*>(stacked)"),
            "first",
            f"moxin::Numbers{{capacity, {config.rms_norm_eps}f, {theta}f, {scale}f}}",
            *(*arguments, *outputs),
        ],
        inputs,
        outputs,
        dtype=dtype,
        scalars={"first": first, "capacity": capacity, **(scalars or {})},
        **options,
    )


def launch(
    kernel: compiler.Kernel,
    blocks: Sequence[Block],
    x: mx.array,
    filled: mx.array,
    stacked: mx.array,
) -> mx.array:
    """``x`` behind ``blocks``, for tokens that follow ``filled`` others.

    Their keys and values go into ``stacked``, what :func:`kv_cache.take` gives.
    """
    return kernel(x, filled, compiler.block_counter(), stacked, *arrays(blocks))[0]
