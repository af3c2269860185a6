"""A short prompt on NVIDIA GPUs, such as a further question about a picture, in one kernel.

Like a decoding step it reads every weight once, and one launch does many layers; handing the GPU
some 250 kernels takes longer than they run. Longer prompts and batches are in ``rows``.
"""

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...cache import KVCache
from . import compiler, kv_cache, layer_kernels, rows
from . import row_kernels as kernels
from .decoder_weights import caches_fit, count_array, read_blocks


class ShortPrompt:
    """A ``LanguageModel``'s pass over a few tokens of one sequence that a cache takes up.

    Args:
        model: of which :func:`decoder_weights.read_blocks` gives the blocks.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._kernel = functools.lru_cache(self._prepare)

    def takes(
        self, inputs: mx.array, inputs_embeds: mx.array | None, cache: Sequence[Any] | None
    ) -> bool:
        """Whether ``inputs`` ``[1, T]`` are few and the caches are plain."""
        config, dtype = self.model.config, self.model.model.norm.weight.dtype
        attended = config.num_attention_heads * config.head_dim
        widths = (config.hidden_size, attended, config.intermediate_size)
        return (
            inputs.shape[0] == 1
            and inputs.shape[1] <= kernels.ROW_TILES[-1]
            and caches_fit(cache, (KVCache,), inputs, inputs_embeds, dtype)
            and all(width % kernels.TILE_K == 0 for width in widths)
            and compiler.max_shared_memory() >= self._shared_memory(kernels.ROW_TILES[-1])
        )

    def _shared_memory(self, tile: int) -> int:
        """Bytes that a step of the kernel needs at most, with tiles of so many rows."""
        width = self.model.config.head_dim
        return max(
            kernels.product_memory(tile), kernels.attention_memory(kernels.FEW_QUERIES, width)
        )

    def __call__(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: Sequence[KVCache],
        logits_to_keep: int = 0,
    ) -> mx.array | None:
        """Logits of the last ``logits_to_keep`` (0: all) tokens; fills ``cache``.

        None, and the cache as it was, if no kernel takes the model any more.
        """
        model, config, layers = self.model.model, self.model.config, len(self.model.layers)
        x = model.embed_tokens(inputs) if inputs_embeds is None else inputs_embeds
        x, tokens = x[0], inputs.shape[1]
        if cache[0].keys is None:
            shape = (config.num_key_value_heads, KVCache.step, config.head_dim)
            stacked = mx.zeros((2 * layers, *shape), x.dtype)
        else:
            stacked = kv_cache.take(cache, tokens)
        filled = count_array(cache[0].offset)
        for first in range(0, layers, layer_kernels.LAYERS_AT_ONCE):
            # The GPU works on these layers while the next ones are read.
            blocks = read_blocks(self.model, slice(first, first + layer_kernels.LAYERS_AT_ONCE))
            if blocks is None:
                return None
            for taken in layer_kernels.groups(blocks):
                own, number = blocks[taken], first + taken.start
                sizes = len(own), number, tokens, stacked.shape[2]
                kernel = self._kernel(x.dtype, layer_kernels.packings(own[0]), *sizes)
                x = layer_kernels.launch(kernel, own, x, filled, stacked)
                mx.async_eval(x)
        logits = rows.logits(self.model.lm_head, model.norm(x[None, -logits_to_keep:]))
        stacked, views = kv_cache.written(stacked, x, layers)
        # As in a decoding step.
        mx.async_eval(logits, stacked)
        kv_cache.put(cache, stacked, views, tokens)
        return logits

    def _prepare(
        self,
        dtype: mx.Dtype,
        packed: layer_kernels.Packings,
        count: int,
        first: int,
        tokens: int,
        capacity: int,
    ) -> compiler.Kernel:
        """The kernel of ``count`` layers from number ``first`` on."""
        tile = kernels.row_tile(tokens)
        # All have to run at once.
        config, grid = self.model.config, compiler.multiprocessors()
        hidden, inner = config.hidden_size, config.intermediate_size
        attended = config.num_attention_heads * config.head_dim
        projected = attended + 2 * config.num_key_value_heads * config.head_dim
        splits = {
            "qkv": kernels.count_splits(projected, hidden, grid),
            "output": kernels.count_splits(hidden, attended, grid),
            "down": kernels.count_splits(hidden, inner, grid),
        }
        products = max(splits["qkv"] * projected, max(splits.values()) * hidden)
        outputs = {
            "out": ((tokens, hidden), dtype),
            "normed": ((tokens, hidden), dtype),
            "products": ((products * tokens,), mx.float32),
            "queries": ((tokens, attended), dtype),
            "attended": ((tokens, attended), dtype),
            "gated": ((tokens, inner), dtype),
        }
        return layer_kernels.prepare(
            *("rows", config, packed, count, first, capacity, outputs),
            dtype=dtype,
            template=(tile,),
            arguments=("tokens", f"moxin::Splits{{{', '.join(splits)}}}"),
            scalars={"tokens": tokens, **splits},
            file="rows.cu",
            blocks=grid,
            threads=kernels.MULTIPLY_THREADS,
            shared_memory=self._shared_memory(tile),
        )
