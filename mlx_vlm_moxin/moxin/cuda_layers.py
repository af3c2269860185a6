"""What the kernels that take many layers in one launch have in common."""

import itertools
import math
from collections.abc import Iterator, Sequence

import mlx.core as mx

from .config import TextConfig
from .cuda_decoder import Block, Packing, array_names

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
    """Those of ``blocks``, in the order of :func:`parameters`."""
    return [
        array
        for block in blocks
        for array in (
            *(block.input_norm, *block.qkv.arrays, *block.output.arrays),
            *(block.post_norm, *block.gate_up.arrays, *block.down.arrays),
        )
    ]


def parameters(dtype: mx.Dtype, packed: Packings, count: int) -> tuple[dict[str, mx.Dtype], str]:
    """Names and dtypes of the arrays of ``count`` layers, and a C++ function that makes them an
    array of ``moxin::Layer`` (kernels/layer.cu).
    """
    inputs: dict[str, mx.Dtype] = {}

    def norm() -> list[str]:
        name = f"in_{len(inputs)}"
        inputs[name] = dtype
        return [name]

    def matrices(packing: Packing) -> Iterator[str]:
        for _ in packing.sizes:
            names = []
            for kind in array_names(packing.bits):
                names.append(f"in_{len(inputs)}")
                is_words = kind == "weight" and packing.bits < 16
                inputs[names[-1]] = mx.uint32 if is_words else dtype
            yield f"{{{', '.join(names)}}}"

    layers = []
    for index in range(count):
        qkv, output, gate_up, down = packed
        members = [*norm(), *matrices(qkv), *matrices(output)]
        members += [*norm(), *matrices(gate_up), *matrices(down)]
        # By a thread for each layer.
        layers.append(f"if (threadIdx.x == {index}) own[{index}] = {{{', '.join(members)}}};")
    return inputs, f"[&](moxin::Layer<T>* own) {{ {' '.join(layers)} }}"


def sizes(config: TextConfig) -> str:
    """A ``moxin::Sizes`` (kernels/layer.cu)."""
    widths = (config.hidden_size, config.intermediate_size, config.head_dim)
    heads = (config.num_attention_heads, config.num_key_value_heads)
    return f"moxin::Sizes<{', '.join(map(str, (*widths, *heads, config.sliding_window or 0)))}>"


def formats(packed: Packings) -> str:
    """A ``moxin::Packing`` for each."""
    return ", ".join(f"moxin::Packing<{own.bits}, {own.group_size}>" for own in packed)


def numbers(config: TextConfig) -> str:
    """A ``moxin::Numbers`` (kernels/layer.cu), of the scalar ``capacity``."""
    theta, scale = math.log2(config.rope_theta), config.head_dim**-0.5
    return f"moxin::Numbers{{capacity, {config.rms_norm_eps}f, {theta}f, {scale}f}}"
