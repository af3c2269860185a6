"""The decoder as the kernels read it, and the strict check that they compute the same.

Supported: bfloat16 and float16; plain matrices and 8 or 4 bits in groups; the Llama blocks of
mlx-vlm with plain RoPE, whole or sharded over processes by ``LanguageModel.shard``. Everything else
raises ``UnsupportedError`` with the reason.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers import distributed

from ...llama.language import MLP, Attention, TransformerBlock
from .. import linear
from .errors import UnsupportedError, require
from .kernel import DTYPES

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
# A lane reads 16 bytes, which are 32 weights of 4 bits, and eight lanes share a key.
WIDTH_MULTIPLE = 64
TRAINING = "the model is being trained"


class Kinds(NamedTuple):
    """Classes of matrices that the kernels may multiply in the same place."""

    plain: tuple[type[nn.Module], ...]
    quantized: tuple[type[nn.Module], ...]


WHOLE = Kinds((nn.Linear, linear.Linear), (nn.QuantizedLinear, linear.QuantizedLinear))
# Some rows of a matrix, which give some values of the product.
SHARDED_ROWS = Kinds((distributed.AllToShardedLinear,), (distributed.QuantizedAllToShardedLinear,))
# Some columns, the products of which the processes must add up.
SHARDED_COLUMNS = Kinds(
    (distributed.ShardedToAllLinear,), (distributed.QuantizedShardedToAllLinear,)
)


class DecoderSizes(NamedTuple):
    """What all layers of a decoder have in common.

    Heads and ``intermediate`` of a sharded decoder are this process's.

    Attributes:
        dtype: of activations, norms, plain matrices, scales and biases.
        window: visible positions, 0 for all.
        eps: of the norms.
        theta: base of the RoPE.
        group: processes over which the decoder is sharded; None for a whole one.
    """

    dtype: mx.Dtype
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    eps: float
    theta: float
    group: mx.distributed.Group | None = None

    @property
    def attended(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads."""
        return self.kv_heads * self.head_dim


class Format(NamedTuple):
    """How a matrix is stored.

    Attributes:
        bits: 16 for a plain matrix.
        group_size: weights that share a scale; 0 for a plain matrix.
    """

    bits: int
    group_size: int

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of a matrix's arrays."""
        return ("weight",) if self.bits == 16 else ("weight", "scales", "biases")

    def dtypes(self, dtype: mx.Dtype) -> tuple[mx.Dtype, ...]:
        """Those of ``arrays`` in a model of ``dtype``."""
        return (dtype,) if self.bits == 16 else (mx.uint32, dtype, dtype)

    @property
    def c_type(self) -> str:
        """The format in C++ (weights.cuh)."""
        return f"moxin::Format<{self.bits}, {self.group_size}>"


PLAIN_FORMAT = Format(16, 0)


class Projection(NamedTuple):
    """Matrices of one format that a kernel multiplies together.

    Attributes:
        rows: of each matrix.
        arrays: of one matrix after the other, in the order of ``format.arrays``.
    """

    format: Format
    rows: tuple[int, ...]
    arrays: list[mx.array]


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
        return self.qkv, self.output, self.gate_up, self.down

    @property
    def formats(self) -> tuple[Format, ...]:
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


@functools.cache
def _quantized_format(bits: int, group_size: int, mode: str) -> Format:
    is_known = mode == "affine" and bits in BITS and group_size in GROUP_SIZES
    require(is_known, "a matrix has another packing")
    return Format(bits, group_size)


def _format(layer: nn.Module, kinds: Kinds) -> Format:
    # Compared by class: adapters and subclasses may compute something else.
    kind = type(layer)
    if kind in kinds.plain:
        return PLAIN_FORMAT
    is_known = kind in kinds.quantized
    require(is_known, "a matrix is an adapter, sharded in another way or of another class")
    return _quantized_format(layer.bits, layer.group_size, layer.mode)


@functools.cache
def _expected(form: Format, dtype: mx.Dtype, width: int) -> list[tuple[str, int, mx.Dtype]]:
    """Names, columns and dtypes of the arrays of a matrix with ``width`` inputs."""
    columns = [width]
    if form.bits < 16:
        groups = width // form.group_size
        columns = [width * form.bits // 32, groups, groups]
    return list(zip(form.arrays, columns, form.dtypes(dtype)))


def read_projection(
    dtype: mx.Dtype, width: int, *layers: nn.Module, kinds: Kinds = WHOLE
) -> Projection:
    """``layers``, which have ``width`` inputs, as one projection.

    Raises:
        UnsupportedError: if they are of different formats or of other classes, dtypes or shapes.
    """
    # The second question about a picture waits for this, which is why it is written to be fast.
    form, rows, arrays = _format(layers[0], kinds), [], []
    expected = _expected(form, dtype, width)
    for layer in layers:
        if layer is not layers[0] and _format(layer, kinds) is not form:
            raise UnsupportedError("matrices that are multiplied together are packed apart")
        if len(layer) != len(expected):
            raise UnsupportedError("a matrix has a bias or other parameters")
        count = layer["weight"].shape[0]
        for name, columns, kind in expected:
            array = layer[name]
            if array.shape != (count, columns):
                raise UnsupportedError("a matrix has another shape")
            if array.dtype != kind:
                raise UnsupportedError("a matrix is of another dtype than the norms")
            arrays.append(array)
        rows.append(count)
    return Projection(form, tuple(rows), arrays)


def _read_norm(norm: nn.Module, sizes: DecoderSizes) -> mx.array:
    require(type(norm) is nn.RMSNorm and norm.eps == sizes.eps, "a norm is of another kind")
    weight = norm["weight"]
    is_same = weight.dtype == sizes.dtype and weight.shape == (sizes.hidden,)
    require(is_same, "a norm is of another dtype or shape")
    return weight


def read_sizes(decoder: nn.Module) -> DecoderSizes:
    """Sizes of ``decoder``, a ``MistralModel``.

    Raises:
        UnsupportedError: if no kernel computes such a decoder. The layers are checked when they
            are read.
    """
    first = decoder.layers[0]
    require(type(first) is TransformerBlock, "the layers are not mlx-vlm's Llama blocks")
    attention, norm = first.self_attn, decoder.norm
    group = getattr(attention.o_proj, "group", None)
    require(type(norm) is nn.RMSNorm, "a norm is of another kind")
    require(type(attention.rope) is nn.RoPE, "the RoPE is scaled")
    sizes = DecoderSizes(
        dtype=norm.weight.dtype,
        hidden=norm.weight.shape[0],
        intermediate=decoder.args.intermediate_size // (group.size() if group else 1),
        heads=attention.n_heads,
        kv_heads=attention.n_kv_heads,
        head_dim=attention.head_dim,
        window=decoder.sliding_window or 0,
        eps=norm.eps,
        theta=float(attention.rope.base),
        group=group,
    )
    require(sizes.dtype in DTYPES, f"the dtype is {sizes.dtype}")
    embedding = decoder.embed_tokens
    values = embedding.weight if type(embedding) is nn.Embedding else embedding.get("scales")
    require(values is not None and values.dtype == sizes.dtype, "embeddings of another dtype")
    widths = (sizes.hidden, sizes.intermediate, sizes.head_dim)
    require(
        all(width % WIDTH_MULTIPLE == 0 for width in widths),
        f"a width is no multiple of {WIDTH_MULTIPLE}",
    )
    require(sizes.heads % sizes.kv_heads == 0, "heads do not share keys evenly")
    return sizes


def _read_layer(layer: nn.Module, sizes: DecoderSizes) -> DecoderLayer:
    # Parts are read as from dictionaries, which modules are: this runs before each prompt, and
    # attributes cost several times as much.
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


def caches_fit(
    cache: Sequence[Any] | None,
    kinds: Sequence[type],
    inputs: mx.array,
    inputs_embeds: mx.array | None,
    sizes: DecoderSizes,
) -> bool:
    """Whether new tokens can be appended to all of ``cache`` by the kernels.

    Args:
        cache: one per layer; all of the same one of ``kinds`` and filled alike.
        inputs: ids of the new tokens ``[B, T]``.
        inputs_embeds: their embeddings, if they are not the ids' own.
    """
    if not cache:
        return False
    kind = type(cache[0])
    if kind not in kinds or not all(type(layer) is kind for layer in cache):
        return False
    if inputs_embeds is not None and inputs_embeds.dtype != sizes.dtype:
        return False
    filled, keys = cache[0].size(), cache[0].keys
    if not all(layer.size() == filled for layer in cache):
        return False
    if keys is None:
        return filled == 0 and all(layer.keys is None for layer in cache)
    if inputs.shape[1] == 1:
        cache = cache[:1]  # the graph of a step checks all when it is traced
    return are_alike(
        [array for layer in cache for array in (layer.keys, layer.values)], inputs.shape[0], sizes
    )


def are_alike(arrays: Sequence[mx.array | None], batch: int, sizes: DecoderSizes) -> bool:
    """Whether cached keys and values are ``[batch, KV, capacity, head_dim]``, of one capacity."""
    if arrays[0] is None or arrays[0].ndim != 4:
        return False
    shape = (batch, sizes.kv_heads, arrays[0].shape[2], sizes.head_dim)
    return all(
        array is not None and array.shape == shape and array.dtype == sizes.dtype
        for array in arrays
    )
