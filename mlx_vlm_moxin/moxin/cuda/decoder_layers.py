"""The decoder's layers as the kernels read them, with a strict check that results are the same.

Supported: bfloat16 and float16; plain matrices and 8 or 4 bits in groups; the Llama blocks of
mlx-vlm with plain RoPE, whole or sharded over processes by ``LanguageModel.shard``. Everything else
raises ``UnsupportedError`` with the reason.
"""

from operator import itemgetter

import mlx.nn as nn

from ...llama.language import MLP, Attention, TransformerBlock
from . import known_layers
from .decoder_sizes import DecoderSizes, read_sizes
from .errors import UnsupportedError, require
from .layer_form import DecoderLayer, Formats, LayerForm, layer_form
from .projections import (
    OTHER_PARAMETERS,
    SHARDED_COLUMNS,
    SHARDED_ROWS,
    WHOLE,
    Format,
    Kinds,
    read_format,
)

TRAINING = "the model is being trained"

# Parts are read as dictionary entries, since modules are dictionaries: this runs before each
# prompt, and attributes take several times as long.
_of_layer = itemgetter("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
_of_attention = itemgetter("rope", "q_proj", "k_proj", "v_proj", "o_proj")
_of_mlp = itemgetter("gate_proj", "up_proj", "down_proj")


def _modules(layer: nn.Module) -> tuple[nn.Module, ...]:
    """Attention, RoPE, and then the norms and matrices in the order of ``LayerForm.names``."""
    require(type(layer) is TransformerBlock, "a layer is not one of mlx-vlm's Llama blocks")
    attention, mlp, input_norm, post_norm = _of_layer(layer)
    is_known = type(attention) is Attention and type(mlp) is MLP
    require(is_known, "a layer's attention or MLP is of another class")
    rope, *matrices = _of_attention(attention)
    return attention, rope, input_norm, *matrices, post_norm, *_of_mlp(mlp)


def layer_modules(layer: nn.Module) -> tuple[nn.Module, ...]:
    """The norms and matrices of ``layer``, a block, in the order of ``LayerForm.names``."""
    return _modules(layer)[2:]


def _check(modules: tuple[nn.Module, ...], sizes: DecoderSizes) -> LayerForm:
    """The form of the layer that has these modules. What this reads is in ``known_layers``."""
    attention, rope, input_norm, *qkv, output, post_norm, gate, up, down = modules
    heads = attention.n_heads, attention.n_kv_heads, attention.head_dim
    require(heads == (sizes.heads, sizes.kv_heads, sizes.head_dim), "a layer has other heads")
    require(attention.scale == sizes.head_dim**-0.5, "a layer scales its scores in another way")
    require(
        type(rope) is nn.RoPE
        and rope.dims == sizes.head_dim
        and not rope.traditional
        and rope.base == sizes.theta
        and rope.scale == 1,
        "a layer's RoPE is scaled, partial, traditional or of another base",
    )
    for norm in (input_norm, post_norm):
        require(type(norm) is nn.RMSNorm and norm.eps == sizes.eps, "a norm is of another kind")
    inner, outer = WHOLE, WHOLE
    if sizes.group is not None:
        inner, outer = SHARDED_ROWS, SHARDED_COLUMNS
        groups = [getattr(part, "group", None) for part in (*qkv, output, gate, up, down)]
        is_one = all(group is sizes.group for group in groups)
        require(is_one, "layers are sharded over different groups")
    formats: Formats = (
        _read_format(qkv, inner),
        _read_format([output], outer),
        _read_format([gate, up], inner),
        _read_format([down], outer),
    )
    return layer_form(sizes, formats)


def _read_format(matrices: list[nn.Module], kinds: Kinds) -> Format:
    """The format of ``matrices`` that are multiplied together."""
    form, *others = (read_format(matrix, kinds) for matrix in matrices)
    is_same = all(other == form for other in others)
    require(is_same, "matrices that are multiplied together are packed apart")
    return form


def read_layer(layer: nn.Module, sizes: DecoderSizes) -> DecoderLayer:
    """``layer``, a block of a ``MistralModel``, as the kernels read it.

    The shapes and dtypes of its arrays are not checked yet, which takes as long as the rest:
    ``DecoderLayer.check`` does that, or whatever compiles a graph of the layer, once for each
    graph, since MLX compares shapes and dtypes with those of the graph.

    Raises:
        UnsupportedError: if the kernels do not compute what the layer computes.
    """
    modules = _modules(layer)
    form = known_layers.find(modules, sizes, _check)
    try:
        arrays = [module[name] for module, names in zip(modules[2:], form.names) for name in names]
    except KeyError:  # others than those of the layer that it is like
        raise UnsupportedError(OTHER_PARAMETERS) from None
    return DecoderLayer(form, arrays)


def read_layers(
    decoder: nn.Module, sizes: DecoderSizes, chosen: slice = slice(None)
) -> list[DecoderLayer]:
    """The ``chosen`` layers of ``decoder``, a ``MistralModel``, with their arrays checked.

    Raises:
        UnsupportedError: if the kernels do not compute what one of them computes.
    """
    layers = [read_layer(layer, sizes) for layer in decoder["layers"][chosen]]
    for layer in layers:
        layer.check()
    return layers


def supports(decoder: nn.Module) -> bool:
    """Whether the kernels compute what ``decoder``, a ``MistralModel``, computes."""
    try:
        require(not decoder.training, TRAINING)
        read_layers(decoder, read_sizes(decoder))
    except UnsupportedError:
        return False
    return True
