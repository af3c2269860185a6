"""A pass over a few rows or tokens on NVIDIA GPUs, in kernels of our own.

Of prompts (first a picture, then further questions) and of batches. Up to 64 rows a product
reads its weights once and computes little beside; longer prompts leave the products to MLX.
What stands between them is one kernel each, in place of some ten of MLX's. A prompt's first
layers are computed while the later ones are still being put together.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..activations import swiglu
from ..cache import BatchKVCache, KVCache
from . import cuda_row_kernels as kernels
from .cuda_decoder import CHANGED, Block, Part, read_blocks, read_part
from .cuda_kernels import Kernel

MAX_TOKENS = 512
# Layers that are handed to the GPU at a time.
LAYERS_AT_ONCE = 2
# MLX puts arrays of up to 8 bytes into host memory, which a kernel reads in 10 us.
MIN_SIZE = 4


def _linear(layer: nn.Module, x: mx.array) -> mx.array:
    """``layer(x)``; MLX takes a minute to compile its packed product for a prompt's size."""
    if not isinstance(layer, nn.QuantizedLinear) or layer.mode != "affine":
        return layer(x)
    packing = layer.group_size, layer.bits
    return x @ mx.dequantize(layer.weight, layer.scales, layer.biases, *packing).T


class RowsPass:
    """A ``LanguageModel``'s pass over new tokens that a cache takes up.

    Args:
        model: of which :func:`cuda_decoder.read_blocks` gives the blocks.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._shape = None

    def takes(
        self, inputs: mx.array, inputs_embeds: mx.array | None, cache: Sequence[Any] | None
    ) -> bool:
        """Whether the caches are plain or a batch's and fit the new tokens ``[B, T]``."""
        if cache is None or inputs.shape[1] > MAX_TOKENS:
            return False
        if any(type(layer) is not type(cache[0]) for layer in cache):
            return False
        dtype, keys = self.model.model.norm.weight.dtype, cache[0].keys
        return (
            type(cache[0]) in (KVCache, BatchKVCache)
            and (keys is None or (keys.dtype == dtype and keys.shape[0] == inputs.shape[0]))
            and (inputs_embeds is None or inputs_embeds.dtype == dtype)
        )

    def __call__(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: Sequence[KVCache | BatchKVCache],
        logits_to_keep: int = 0,
        blocks: Sequence[Block] | None = None,
    ) -> mx.array:
        """Logits of the last ``logits_to_keep`` (0: all) tokens; fills ``cache``.

        ``blocks``: the model's, if they have just been read.
        """
        filled = cache[0].size()
        filled = mx.arange(filled, filled + MIN_SIZE)
        if isinstance(cache[0], BatchKVCache):
            padding = mx.pad(cache[0].left_padding, (0, MIN_SIZE))
        else:
            padding = mx.zeros(inputs.shape[0] + MIN_SIZE, mx.int32)
        keys, values = [layer.keys for layer in cache], [layer.values for layer in cache]
        if inputs.shape[1] == 1 and inputs_embeds is None and keys[0] is not None:
            if keys[0].shape != self._shape:
                # MLX keeps a graph for each shape that it has seen: drop the last one.
                self._shape = keys[0].shape
                self._compiled = mx.compile(self._step, inputs=self.model.state)
            logits, keys, values = self._compiled(inputs, filled, padding, keys, values)
        else:
            x = self.model.model.embed_tokens(inputs) if inputs_embeds is None else inputs_embeds
            run = _Run(self.model, blocks, x, filled, padding)
            logits, keys, values = run(x, keys, values, logits_to_keep, starts_early=True)
        for layer, key, value in zip(cache, keys, values):
            layer.update_and_fetch(key, value)
        return logits

    def _step(
        self,
        inputs: mx.array,
        filled: mx.array,
        padding: mx.array,
        keys: list[mx.array],
        values: list[mx.array],
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        x = self.model.model.embed_tokens(inputs)
        return _Run(self.model, None, x, filled, padding)(x, keys, values)


class _Run:
    """One pass, with the kernels for its sizes.

    Args:
        blocks: those of ``model``; None to read them.
        x: embeddings ``[B, T, hidden_size]``.
        filled: int32, the number of cached tokens; what follows it is ignored.
        padding: int32, for each sequence how many of them are hidden.

    Raises:
        ValueError: if no kernel takes the model any more.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block] | None,
        x: mx.array,
        filled: mx.array,
        padding: mx.array,
    ):
        self.model, self.blocks = model, blocks or read_blocks(model)
        if self.blocks is None:
            raise ValueError(CHANGED)
        config = model.config
        self.dtype, self.eps = x.dtype, config.rms_norm_eps
        self.tokens, self.width = kernels.Tokens(*x.shape[:2]), config.hidden_size
        self.heads = kernels.Heads(
            config.num_attention_heads, config.num_key_value_heads, config.head_dim
        )
        self.theta, self.window = config.rope_theta, config.sliding_window or 0
        self.places = filled, padding
        self._prepared: dict[tuple, tuple[Kernel, int] | None] = {}

    def __call__(
        self,
        x: mx.array,
        keys: Sequence[mx.array | None],
        values: Sequence[mx.array | None],
        logits_to_keep: int = 0,
        starts_early: bool = False,
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        """Logits ``[B, T or logits_to_keep, vocab_size]``, new keys and values of all layers.

        Args:
            x: embeddings ``[B, T, hidden_size]``.
            keys: of the cache, ``[B, KV, capacity, head_dim]`` for each layer.
            values: the same.
            starts_early: hand layers to the GPU as soon as they are recorded.
        """
        norms = [block.input_norm for block in self.blocks[1:]] + [self.model.model.norm.weight]
        h = x.reshape(-1, self.width)
        normed = mx.fast.rms_norm(h, self.blocks[0].input_norm, self.eps)
        new_keys, new_values = [], []
        for index, (block, norm) in enumerate(zip(self.blocks, norms)):
            queries, key, value = self._qkv(block.qkv, normed)
            attended = self._attend(queries, keys[index], values[index], key, value)
            h, normed = self._project(block.output, attended, h, block.post_norm)
            h, normed = self._project(block.down, self._gate(block.gate_up, normed), h, norm)
            new_keys.append(key)
            new_values.append(value)
            if starts_early and index % LAYERS_AT_ONCE == 0:
                mx.async_eval(h, normed)
        return self._logits(normed, logits_to_keep), new_keys, new_values

    def _logits(self, x: mx.array, logits_to_keep: int) -> mx.array:
        last = x.reshape(*self.tokens, -1)[:, -logits_to_keep:]
        head, flat = self.model.lm_head, last.flatten(0, 1)
        part = read_part(head)
        if part is None:
            return head(last)
        (product, *_), splits = self._multiply(part, flat)
        logits = product.sum(axis=0).astype(self.dtype) if splits else product
        return logits.reshape(*last.shape[:2], -1)

    def _multiply(
        self, part: Part, x: mx.array, is_gated: bool = False
    ) -> tuple[list[mx.array], int]:
        """``x`` ``[rows, K]`` times all layers of ``part``, and the number of parts of the product.

        If no kernel does it, one product for each layer and 0 parts.
        """
        shape = part.bits, part.group_size, part.sizes, *x.shape, is_gated
        if shape not in self._prepared:
            self._prepared[shape] = kernels.multiply(self.dtype, *shape)
        prepared = self._prepared[shape]
        if prepared is None:
            return [_linear(layer, x) for layer in part.layers], 0
        kernel, splits = prepared
        return kernel(x, *part.arrays), splits

    def _qkv(self, part: Part, x: mx.array) -> list[mx.array]:
        products, splits = self._multiply(part, x)
        rotate = kernels.rotate(self.dtype, self.heads, self.theta, self.tokens, splits)
        return rotate(*products, *self.places)

    def _attend(
        self,
        queries: mx.array,
        keys: mx.array | None,
        values: mx.array | None,
        key: mx.array,
        value: mx.array,
    ) -> mx.array:
        if keys is None:
            keys, values = key, value
        capacity = keys.shape[2]
        attend = kernels.attend(self.dtype, self.heads, self.window, self.tokens, capacity)
        return attend(queries, keys, values, key, value, *self.places)[0]

    def _gate(self, part: Part, x: mx.array) -> mx.array:
        """``silu(gate_proj(x)) * up_proj(x)``."""
        products, splits = self._multiply(part, x, is_gated=True)
        return products[0] if splits else swiglu(*products)

    def _project(
        self, part: Part, x: mx.array, residual: mx.array, norm: mx.array
    ) -> list[mx.array]:
        """``residual + projection(x)`` and its norm."""
        (product, *_), splits = self._multiply(part, x)
        add_norm = kernels.add_norm(self.dtype, self.tokens.rows, self.width, self.eps, splits)
        return add_norm(product, residual, norm)
