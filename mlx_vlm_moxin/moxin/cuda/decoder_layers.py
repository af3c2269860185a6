"""The decoder's layers as the kernels read them, with a strict check that results are the same.

Supported: bfloat16 and float16; plain matrices and 8 or 4 bits in groups; the Llama blocks of
mlx-vlm with plain RoPE, whole or sharded over processes by ``LanguageModel.shard``. Everything else
raises ``UnsupportedError`` with the reason.
"""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...llama.language import MLP, Attention, TransformerBlock
from .decoder_sizes import DecoderSizes, read_sizes
from .errors import UnsupportedError, require
from .projections import (
    SHARDED_COLUMNS,
    SHARDED_ROWS,
    WHOLE,
    Format,
    Projection,
    read_projection,
)

TRAINING = "the model is being trained"


class DecoderLayer(NamedTuple):
    """Arrays of one decoder layer."""

    input_norm: mx.array
    qkv: Projection
    output: Projection
    post_norm: mx.array
    gate_up: Projection
    down: Projection

    @property
    def projections(self) -> tuple[Projection, Projection, Projection, Projection]:
        """All projections, in the order of ``fused_layers.MATRICES``."""
        return self.qkv, self.output, self.gate_up, self.down

    @property
    def formats(self) -> tuple[Format, ...]:
        """Formats of ``projections``."""
        return tuple(projection.format for projection in self.projections)

    @property
    def arrays(self) -> list[mx.array]:
        """All arrays, in the order of moxin::Layer (decoder_layer.cuh)."""
        return [
            self.input_norm,
            *self.qkv.arrays,
            *self.output.arrays,
            self.post_norm,
            *self.gate_up.arrays,
            *self.down.arrays,
        ]


def _read_norm(norm: nn.Module, sizes: DecoderSizes) -> mx.array:
    require(type(norm) is nn.RMSNorm and norm.eps == sizes.eps, "a norm is of another kind")
    weight = norm["weight"]
    is_same = weight.dtype == sizes.dtype and weight.shape == (sizes.hidden,)
    require(is_same, "a norm is of another dtype or shape")
    return weight


def _read_layer(layer: nn.Module, sizes: DecoderSizes) -> DecoderLayer:
    # Parts are read as dictionary entries, since modules are dictionaries: this runs before each
    # prompt, and attributes take several times as long.
    require(type(layer) is TransformerBlock, "a layer is not one of mlx-vlm's Llama blocks")
    attention, mlp = layer["self_attn"], layer["mlp"]
    is_known = type(attention) is Attention and type(mlp) is MLP
    require(is_known, "a layer's attention or MLP is of another class")
    heads = attention.n_heads, attention.n_kv_heads, attention.head_dim
    require(heads == (sizes.heads, sizes.kv_heads, sizes.head_dim), "a layer has other heads")
    require(attention.scale == sizes.head_dim**-0.5, "a layer scales its scores in another way")
    rope = attention["rope"]
    require(
        type(rope) is nn.RoPE
        and rope.dims == sizes.head_dim
        and not rope.traditional
        and rope.base == sizes.theta
        and rope.scale == 1,
        "a layer's RoPE is scaled, partial, traditional or of another base",
    )
    dtype, hidden = sizes.dtype, sizes.hidden
    qkv = attention["q_proj"], attention["k_proj"], attention["v_proj"]
    gate_up, inner, outer = (mlp["gate_proj"], mlp["up_proj"]), WHOLE, WHOLE
    if sizes.group is not None:
        inner, outer = SHARDED_ROWS, SHARDED_COLUMNS
        groups = [
            getattr(part, "group", None)
            for part in (*qkv, attention["o_proj"], *gate_up, mlp["down_proj"])
        ]
        is_one = all(group is sizes.group for group in groups)
        require(is_one, "layers are sharded over different groups")
    found = DecoderLayer(
        _read_norm(layer["input_layernorm"], sizes),
        read_projection(dtype, hidden, *qkv, kinds=inner),
        read_projection(dtype, sizes.attended, attention["o_proj"], kinds=outer),
        _read_norm(layer["post_attention_layernorm"], sizes),
        read_projection(dtype, hidden, *gate_up, kinds=inner),
        read_projection(dtype, sizes.intermediate, mlp["down_proj"], kinds=outer),
    )
    require(
        found.qkv.rows == (sizes.attended, sizes.keys, sizes.keys)
        and found.output.rows == found.down.rows == (hidden,)
        and found.gate_up.rows == (sizes.intermediate, sizes.intermediate),
        "a matrix has another number of rows",
    )
    return found


def read_layers(
    decoder: nn.Module, sizes: DecoderSizes, chosen: slice = slice(None)
) -> list[DecoderLayer]:
    """The ``chosen`` layers of ``decoder``, a ``MistralModel``.

    Raises:
        UnsupportedError: if the kernels do not compute what one of them computes.
    """
    return [_read_layer(layer, sizes) for layer in decoder["layers"][chosen]]


def supports(decoder: nn.Module) -> bool:
    """Whether the kernels compute what ``decoder``, a ``MistralModel``, computes."""
    try:
        require(not decoder.training, TRAINING)
        read_layers(decoder, read_sizes(decoder))
    except UnsupportedError:
        return False
    return True
