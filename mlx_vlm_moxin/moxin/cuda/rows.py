"""A pass over a few rows or tokens on NVIDIA GPUs, in kernels of our own.

Of prompts (short ones alone are in ``short_prompt``) and of batches. Up to 64 rows a product
reads its weights once and computes little beside; longer prompts leave the products to MLX.
What stands between them is one kernel each, in place of some ten of MLX's. A prompt's first
layers are computed while the later ones are still being put together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...activations import swiglu
from ...cache import BatchKVCache, KVCache
from ..config import TextConfig
from . import kv_cache
from . import row_kernels as kernels
from .compiler import MIN_SIZE
from .decoder_weights import (
    Block,
    LastGraph,
    Packing,
    caches_fit,
    count_array,
    read_blocks,
    read_part,
    require_blocks,
)

MAX_TOKENS = 512
# Layers that are handed to the GPU at a time.
LAYERS_AT_ONCE = 2


class RowsPass:
    """A ``LanguageModel``'s pass over new tokens that a cache takes up.

    Args:
        model: of which :func:`decoder_weights.read_blocks` gives the blocks.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        # Prompts may come between the steps of a batch: each keep their own.
        self._step_graph = LastGraph(lambda: mx.compile(self._step, inputs=model.state))
        self._block_graphs = LastGraph(dict[tuple[Packing, ...], Callable])

    def takes(
        self, inputs: mx.array, inputs_embeds: mx.array | None, cache: Sequence[Any] | None
    ) -> bool:
        """Whether the caches are plain or a batch's and fit the new tokens ``[B, T]``."""
        dtype = self.model.model.norm.weight.dtype
        return inputs.shape[1] <= MAX_TOKENS and caches_fit(
            cache, (KVCache, BatchKVCache), inputs, inputs_embeds, dtype
        )

    def __call__(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: Sequence[KVCache | BatchKVCache],
        logits_to_keep: int = 0,
    ) -> mx.array | None:
        """Logits of the last ``logits_to_keep`` (0: all) tokens; fills ``cache``.

        None, and the cache as it was, if no kernel takes the model any more.

        Raises:
            ValueError: if that is so within an answer.
        """
        filled = count_array(cache[0].size())
        if isinstance(cache[0], BatchKVCache):
            padding = mx.pad(cache[0].left_padding, (0, MIN_SIZE))
        else:
            padding = mx.zeros(inputs.shape[0] + MIN_SIZE, mx.int32)
        keys, values = [layer.keys for layer in cache], [layer.values for layer in cache]
        is_step = inputs.shape[1] == 1 and inputs_embeds is None and keys[0] is not None
        if is_step:
            step = self._step_graph(keys[0].shape)
            result, keys, values = step(inputs, filled, padding, keys, values)
        else:
            blocks = read_blocks(self.model)
            if blocks is None:
                return None
            x = self.model.model.embed_tokens(inputs) if inputs_embeds is None else inputs_embeds
            graphs = self._block_graphs(inputs.shape, None if keys[0] is None else keys[0].shape)
            h, keys, values = self._hidden(
                blocks, x, (filled, padding), keys, values, graphs, starts_early=True
            )
            result = logits(self.model.lm_head, h[:, -logits_to_keep:])
        if isinstance(cache[0], KVCache):
            kv_cache.extend(cache, keys, values)
        else:
            for layer, key, value in zip(cache, keys, values):
                layer.update_and_fetch(key, value)
        return result

    def _step(
        self,
        inputs: mx.array,
        filled: mx.array,
        padding: mx.array,
        keys: list[mx.array],
        values: list[mx.array],
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        blocks, x = require_blocks(self.model), self.model.model.embed_tokens(inputs)
        h, keys, values = self._hidden(blocks, x, (filled, padding), keys, values, {})
        return logits(self.model.lm_head, h), keys, values

    def _hidden(
        self,
        blocks: Sequence[Block],
        x: mx.array,
        places: tuple[mx.array, mx.array],
        keys: Sequence[mx.array | None],
        values: Sequence[mx.array | None],
        graphs: dict[tuple[Packing, ...], Callable],
        starts_early: bool = False,
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        """Normed hidden states of ``x`` ``[B, T, hidden_size]``, new keys and values of all layers.

        Args:
            places: int32 arrays of the number of cached tokens (what follows it is ignored) and,
                for each sequence, of how many of them are hidden.
            keys: of the cache, ``[B, KV, capacity, head_dim]`` for each layer.
            values: the same.
            graphs: of blocks of these sizes, by their packings; missing ones are added.
            starts_early: hand layers to the GPU as soon as they are recorded.
        """
        norms = [block.input_norm for block in blocks[1:]] + [self.model.model.norm.weight]
        h = x.flatten(0, 1)
        normed = mx.fast.rms_norm(h, blocks[0].input_norm, self.model.config.rms_norm_eps)
        new_keys, new_values = [], []
        for index, (block, norm) in enumerate(zip(blocks, norms)):
            packings = tuple(part.packing for part in block.parts)
            if packings not in graphs:
                graphs[packings] = mx.compile(_Block(self.model.config, x.shape[:2], packings))
            h, normed, key, value = graphs[packings](
                h,
                normed,
                [part.arrays for part in block.parts],
                [block.post_norm, norm],
                [] if keys[index] is None else [keys[index], values[index]],
                places,
            )
            new_keys.append(key)
            new_values.append(value)
            if starts_early and index % LAYERS_AT_ONCE == 0:
                mx.async_eval(h, normed)
        return normed.reshape(x.shape), new_keys, new_values


def logits(head: nn.Module, h: mx.array) -> mx.array:
    """``head`` of hidden states ``h`` ``[B, T, hidden_size]``, in our product if that takes it."""
    part, rows = read_part(head), h.flatten(0, 1)
    found = part and kernels.multiply(h.dtype, part.packing, *rows.shape)
    if not found:
        return head(h)
    (product,) = found[0](rows, *part.arrays)
    return product.sum(axis=0).astype(h.dtype).reshape(*h.shape[:2], -1)


class _Block:
    """A block's pass over tokens of one size; of arrays alone, so that a graph serves all blocks.

    Args:
        config: the decoder's.
        shape: batch size and number of new tokens.
        packings: of q/k/v, output, gate/up and down projection.
    """

    def __init__(self, config: TextConfig, shape: tuple[int, int], packings: tuple[Packing, ...]):
        self.config, self.packings = config, packings
        self.tokens = kernels.Tokens(*shape)
        self.heads = kernels.Heads(
            config.num_attention_heads, config.num_key_value_heads, config.head_dim
        )

    def __call__(
        self,
        h: mx.array,
        normed: mx.array,
        arrays: Sequence[Sequence[mx.array]],
        norms: Sequence[mx.array],
        cached: Sequence[mx.array],
        places: tuple[mx.array, mx.array],
    ) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Hidden states, their norm, new keys and new values.

        Args:
            h: hidden states ``[rows, hidden_size]``.
            normed: their norm.
            arrays: those of ``packings``.
            norms: weights of the norms behind attention and MLP.
            cached: keys and values of the cache, nothing if it is empty.
            places: as :meth:`RowsPass._hidden` takes them.
        """
        qkv, output, gate_up, down = zip(self.packings, arrays)
        products, splits = self._multiply(*qkv, normed)
        theta, window = self.config.rope_theta, self.config.sliding_window or 0
        rotate = kernels.rotate(h.dtype, self.heads, theta, self.tokens, splits)
        queries, key, value = rotate(*products, *places)
        keys, values = cached or (key, value)
        attend = kernels.attend(h.dtype, self.heads, window, self.tokens, keys.shape[2])
        (attended,) = attend(queries, keys, values, key, value, *places)
        h, normed = self._project(*output, attended, h, norms[0])
        products, splits = self._multiply(*gate_up, normed, is_gated=True)
        gated = products[0] if splits else swiglu(*products)
        h, normed = self._project(*down, gated, h, norms[1])
        return h, normed, key, value

    def _project(
        self,
        packing: Packing,
        arrays: Sequence[mx.array],
        x: mx.array,
        residual: mx.array,
        norm: mx.array,
    ) -> list[mx.array]:
        """``residual`` plus the product, and its norm."""
        (product,), splits = self._multiply(packing, arrays, x)
        add_norm = kernels.add_norm(x.dtype, *residual.shape, self.config.rms_norm_eps, splits)
        return add_norm(product, residual, norm)

    def _multiply(
        self, packing: Packing, arrays: Sequence[mx.array], x: mx.array, is_gated: bool = False
    ) -> tuple[list[mx.array], int]:
        """``x`` ``[rows, K]`` times all matrices, and the number of parts of the product.

        If no kernel does it, one product for each matrix and 0 parts.
        """
        found = kernels.multiply(x.dtype, packing, *x.shape, is_gated)
        if found is not None:
            kernel, splits = found
            return kernel(x, *arrays), splits
        if packing.bits < 16:
            # MLX takes a minute to compile its packed product for a prompt's size.
            options = {"group_size": packing.group_size, "bits": packing.bits}
            triples = zip(*(arrays[first::3] for first in range(3)))
            arrays = [mx.dequantize(*triple, **options) for triple in triples]
        return [x @ array.T for array in arrays], 0
