"""Sizes that all layers of a decoder share, and the check that the kernels support them."""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...llama.language import TransformerBlock
from .errors import require
from .kernel import DTYPES

# A lane reads 16 bytes, which are 32 weights of 4 bits, and eight lanes share a key.
WIDTH_MULTIPLE = 64


class DecoderSizes(NamedTuple):
    """Sizes and settings that all layers of a decoder share.

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
