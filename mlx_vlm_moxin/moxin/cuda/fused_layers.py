"""Common parts of the kernels of the step and the prompt: many decoder layers in one launch."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from . import kernel
from .decoder_sizes import DecoderSizes
from .kernel import C_TYPES, Kernel
from .layer_form import DecoderLayer, Formats, LayerForm, joined_offsets, layer_form

# A kernel has 4 KB of parameters, and a layer up to 25 arrays.
LAYERS_AT_ONCE = 18
# Layers of a prompt's first launch.
FIRST_LAYERS = 4
# Matrices of each projection, in the order of DecoderLayer.projections.
MATRICES = {"qkv": 3, "output": 1, "gate_up": 2, "down": 1}


def windows(count: int, first: int = 0) -> Iterator[slice]:
    """``count`` layers from number ``first`` on, divided into as few launches as possible.

    They are divided evenly, so that most launches use the same kernel.
    """
    launches = math.ceil(count / LAYERS_AT_ONCE)
    edges = [first + count * index // launches for index in range(launches + 1)]
    yield from (slice(start, end) for start, end in itertools.pairwise(edges))


def prompt_windows(count: int) -> Iterator[slice]:
    """As ``windows``, with a short first one if there are several.

    A prompt's layers are checked before they are launched, so the GPU starts after the first few.
    """
    first = FIRST_LAYERS if count > LAYERS_AT_ONCE else 0
    if first:
        yield slice(0, first)
    yield from windows(count - first, first)


def groups(layers: Sequence[DecoderLayer]) -> Iterator[slice]:
    """Layers of one launch each: up to ``LAYERS_AT_ONCE`` consecutive ones of the same formats."""
    for _, same in itertools.groupby(range(len(layers)), lambda index: layers[index].formats):
        indices = list(same)
        yield from windows(len(indices), indices[0])


def build(
    entry: str,
    sizes: DecoderSizes,
    formats: Formats,
    count: int,
    constants: Mapping[str, Any],
    outputs: Mapping[str, tuple[tuple[int, ...], mx.Dtype]],
    scalars: Mapping[str, int],
    *,
    blocks: int,
    threads: int,
    shared_memory: int,
    further: Sequence[mx.Dtype] = (),
    is_joined: bool = False,
) -> Kernel:
    """The kernel ``entry`` of ``count`` layers, for ``launch``.

    Args:
        formats: of the four projections of every layer.
        constants: of the file, in addition to those of the decoder.
        outputs: names, shapes and dtypes; the first is the hidden states after the layers.
        scalars: of the file.
        further: dtypes of parameters before the layers.
        is_joined: whether a layer is one array (``joined_form``).
    """
    dtype = sizes.dtype
    parameters, inputs, entries = [], [], {}

    def declare(kind: mx.Dtype, name: str, qualifier: str = "const ") -> str:
        inputs.append(kind)
        parameters.append(f"{qualifier}{C_TYPES[kind]}* {name}")
        return name

    def declare_joined(index: int) -> Callable[[mx.Dtype, str], str]:
        """A layer's array; what is returned gives one part of it after the other."""
        layer = declare(mx.uint32, f"layer_{index}")
        offsets = iter(joined_offsets(layer_form(sizes, formats)))

        def part(kind: mx.Dtype, name: str) -> str:
            return f"reinterpret_cast<const {C_TYPES[kind]}*>({layer} + {next(offsets)})"

        return part

    for index in range(count):
        members, add = [], declare_joined(index) if is_joined else declare
        for name, form in zip(MATRICES, formats):
            prefix = f"{name}_{index}"
            # A norm precedes the first projections of attention and MLP.
            if name in ("qkv", "gate_up"):
                members.append(add(dtype, f"{prefix}_norm"))
            for matrix in range(MATRICES[name]):
                names = [
                    add(kind, f"{prefix}_{array}_{matrix}")
                    for array, kind in zip(form.arrays, form.dtypes(dtype))
                ]
                members.append(f"{{{', '.join(names)}}}")
        members += [declare(dtype, f"{name}_{index}", "") for name in ("keys", "values")]
        entries[f"[{index}]"] = ", ".join(members)
    return kernel.build(
        entry,
        {
            "T": dtype,
            "HIDDEN": sizes.hidden,
            "INTERMEDIATE": sizes.intermediate,
            "HEAD_DIM": sizes.head_dim,
            "HEADS": sizes.heads,
            "KV_HEADS": sizes.kv_heads,
            "WINDOW": sizes.window,
            "LAYERS": count,
            **{name.upper(): form.c_type for name, form in zip(MATRICES, formats)},
            "EPS": sizes.eps,
            "LOG2_THETA": math.log2(sizes.theta),
            "SCALE": sizes.head_dim**-0.5,
            "THREADS": threads,
            **constants,
        },
        [dtype, mx.int32, mx.uint32, *further, *inputs],
        outputs,
        scalars,
        macros={
            "LAYER_PARAMETERS": ", ".join(parameters),
            "FILL_LAYERS(table)": kernel.fill_table(entries),
        },
        blocks=blocks,
        threads=threads,
        shared_memory=shared_memory,
        waits=True,
    )


def run(
    layers: Sequence[DecoderLayer],
    x: mx.array,
    filled: mx.array,
    arrays: Sequence[mx.array],
    find: Callable[[LayerForm, int], Kernel],
    *further: mx.array,
) -> mx.array:
    """Hidden states after ``layers``, in as few launches as possible.

    Args:
        arrays: keys and values of each layer in turn.
        find: the kernel of layers of this form, by form and number.
        x, filled, further: as in ``launch``.
    """
    for group in groups(layers):
        some, caches = layers[group], arrays[2 * group.start : 2 * group.stop]
        x = launch(find(some[0].form, len(some)), some, x, filled, caches, *further)
    return x


def launch(
    fused: Kernel,
    layers: Sequence[DecoderLayer],
    x: mx.array,
    filled: mx.array,
    arrays: Sequence[mx.array],
    *further: mx.array,
) -> mx.array:
    """Hidden states after ``layers`` of tokens that follow ``filled`` others.

    Args:
        fused: the kernel of these layers.
        x: hidden states before them.
        filled: as from ``kernel.count_array``.
        arrays: keys and values of each of these layers in turn; the kernel writes into them.
        further: as in ``build``.
    """
    flat = [
        array
        for layer, keys, values in zip(layers, arrays[::2], arrays[1::2])
        for array in (*layer.arrays, keys, values)
    ]
    return fused(x, filled, kernel.counters(), *further, *flat)[0]
