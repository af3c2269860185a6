"""What of the decoder the CUDA kernels take: formats of its matrices, and which models."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from . import compiler
from .compiler import DTYPES, MIN_SIZE

BITS = (4, 8)
# Lanes read 16 bytes, of 4 bits each at the least, and eight of them share a key.
WIDTH_MULTIPLE = 64


class LastGraph:
    """A compiled function for the sizes of the last call.

    MLX keeps a graph for each shape that it has seen; this drops the one before.

    Args:
        make: compiles the function anew.
    """

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._sizes = None

    def __call__(self, *sizes: Any) -> Any:
        """What ``make`` gave when ``sizes`` were last new."""
        if sizes != self._sizes:
            self._sizes, self._made = sizes, self._make()
        return self._made


def count_array(count: int) -> mx.array:
    """An int32 array that begins with ``count``; what follows is ignored."""
    return mx.arange(count, count + MIN_SIZE)


def array_names(bits: int) -> tuple[str, ...]:
    """Names of the arrays of a matrix."""
    return ("weight",) if bits == 16 else ("weight", "scales", "biases")


def matrix_format(layers: Sequence[nn.Module]) -> tuple[int, int] | None:
    """Bits and group size that all ``layers`` have in common, None if no kernel takes them."""
    first = layers[0]
    if isinstance(first, nn.QuantizedLinear):
        common = first.bits, first.group_size
        for layer in layers:
            is_same = isinstance(layer, nn.QuantizedLinear) and "bias" not in layer
            if not is_same or layer.mode != "affine" or (layer.bits, layer.group_size) != common:
                return None
        return common if common[0] in BITS else None
    for layer in layers:
        # Adapters and shards are other classes or have other parameters.
        if not isinstance(layer, nn.Linear) or len(layer) != 1:
            return None
    return 16, 0


class Packing(NamedTuple):
    """How matrices that a kernel takes together are stored.

    Attributes:
        bits: 16 for plain matrices.
        group_size: weights that share a scale.
        sizes: rows of each matrix.
    """

    bits: int
    group_size: int
    sizes: tuple[int, ...]

    @property
    def template(self) -> str:
        """The first template arguments of the kernels that take them."""
        return f"T, {self.bits}, {self.group_size}"

    def parameters(self, dtype: mx.Dtype, prefix: str = "") -> list[dict[str, mx.Dtype]]:
        """Names and dtypes of each matrix's arrays in a model of ``dtype``."""
        dtypes = {name: dtype for name in array_names(self.bits)}
        if self.bits < 16:
            dtypes["weight"] = mx.uint32
        return [
            {f"{prefix}{name}_{index}": kind for name, kind in dtypes.items()}
            for index in range(len(self.sizes))
        ]


class Part(NamedTuple):
    """Matrices that a kernel takes together: weights, scales and biases of one after the other."""

    packing: Packing
    arrays: list[mx.array]


class Block(NamedTuple):
    """One of the decoder's blocks as the kernels read it."""

    input_norm: mx.array
    qkv: Part
    output: Part
    post_norm: mx.array
    gate_up: Part
    down: Part

    @property
    def parts(self) -> tuple[Part, Part, Part, Part]:
        return self.qkv, self.output, self.gate_up, self.down


def caches_fit(
    cache: Sequence[Any] | None,
    kinds: Sequence[type],
    inputs: mx.array,
    inputs_embeds: mx.array | None,
    dtype: mx.Dtype,
) -> bool:
    """Whether all caches are of one of ``kinds`` and take up new tokens ``[B, T]`` of ``dtype``."""
    if cache is None:
        return False
    kind, keys = type(cache[0]), getattr(cache[0], "keys", None)
    return (
        kind in kinds
        and all(type(layer) is kind for layer in cache)
        and (keys is None or (keys.dtype == dtype and keys.shape[0] == inputs.shape[0]))
        and (inputs_embeds is None or inputs_embeds.dtype == dtype)
    )


def read_part(*layers: nn.Module) -> Part | None:
    """``layers`` as one part, None if no kernel takes them."""
    common = matrix_format(layers)
    if common is None:
        return None
    names = array_names(common[0])
    arrays = [layer[name] for layer in layers for name in names]
    sizes = tuple([weight.shape[0] for weight in arrays[:: len(names)]])
    return Part(Packing(*common, sizes), arrays)


def read_blocks(model: nn.Module, chosen: slice = slice(None)) -> list[Block] | None:
    """The ``chosen`` blocks of ``model``, a ``LanguageModel``; None if the kernels do not compute
    the same.

    They do for bfloat16 and float16 on an NVIDIA GPU, with plain matrices and with 8 and 4
    bits in groups; not for adapters, shards and other packings.
    """
    if model.training or not compiler.is_available():
        return None
    config, dtype = model.config, model.model.norm.weight.dtype
    widths = (config.hidden_size, config.intermediate_size, config.head_dim)
    layers = model.layers[chosen]
    is_known = (
        dtype in DTYPES
        and all(width % WIDTH_MULTIPLE == 0 for width in widths)
        and not config.rope_traditional
        and layers[0].self_attn.n_heads == config.num_attention_heads
        and all(type(layer["self_attn"]["rope"]) is nn.RoPE for layer in layers)
    )
    if not is_known:
        return None
    blocks = []
    for layer in layers:
        attention, mlp = layer["self_attn"], layer["mlp"]
        block = Block(
            layer["input_layernorm"]["weight"],
            read_part(attention["q_proj"], attention["k_proj"], attention["v_proj"]),
            read_part(attention["o_proj"]),
            layer["post_attention_layernorm"]["weight"],
            read_part(mlp["gate_proj"], mlp["up_proj"]),
            read_part(mlp["down_proj"]),
        )
        # Of packed matrices the scales are of the model's dtype.
        if any(part is None or part.arrays[-1].dtype != dtype for part in block.parts):
            return None
        blocks.append(block)
    return blocks


def require_blocks(model: nn.Module) -> list[Block]:
    """:func:`read_blocks` of a model that kernels took before.

    Raises:
        ValueError: if no kernel takes the model any more.
    """
    blocks = read_blocks(model)
    if blocks is None:
        raise ValueError("The decoder was changed within an answer; start again with a prompt")
    return blocks
