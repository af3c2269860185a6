"""A short prompt on NVIDIA GPUs, such as a further question about a picture, in one kernel.

Like a decoding step it reads every weight once, and one launch does many layers; handing the GPU
some 250 kernels takes longer than they run. Longer prompts and batches are in ``cuda_rows``.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache import KVCache
from . import cuda_cache, cuda_kernels, cuda_layers, cuda_rows
from .cuda_decoder import Block, count_array, require_blocks
from .cuda_row_kernels import (
    BLOCK_COLUMNS,
    FEW_QUERIES,
    KEYS,
    MAX_SPLITS,
    MULTIPLY_THREADS,
    ROW_TILES,
    STAGES,
    TILE_K,
)

# For so many blocks of the kernel a multiprocessor has registers.
MAX_BLOCKS = 2


class ShortPrompt:
    """A ``LanguageModel``'s pass over a few tokens of one sequence that a cache takes up.

    Args:
        model: of which :func:`cuda_decoder.read_blocks` gives the blocks.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._kernel = functools.lru_cache(self._prepare)

    def takes(
        self, inputs: mx.array, inputs_embeds: mx.array | None, cache: Sequence[Any] | None
    ) -> bool:
        """Whether ``inputs`` ``[1, T]`` are few and the caches are plain."""
        config, dtype = self.model.config, self.model.model.norm.weight.dtype
        if cache is None or inputs.shape[0] > 1 or inputs.shape[1] > ROW_TILES[-1]:
            return False
        if any(type(layer) is not KVCache for layer in cache):
            return False
        attended = config.num_attention_heads * config.head_dim
        widths = (config.hidden_size, attended, config.intermediate_size)
        keys = cache[0].keys
        return (
            (keys is None or (keys.dtype == dtype and keys.shape[0] == 1))
            and (inputs_embeds is None or inputs_embeds.dtype == dtype)
            and all(width % TILE_K == 0 for width in widths)
            and cuda_kernels.max_shared_memory() >= self._shared_memory(ROW_TILES[-1])
        )

    def _shared_memory(self, tile: int) -> int:
        """Bytes that a step of the kernel needs at most, with tiles of so many rows."""
        attention = (FEW_QUERIES + 4 * KEYS) * (2 * self.model.config.head_dim + 16)
        return max(STAGES * tile * TILE_K * 2, attention)

    def __call__(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: Sequence[KVCache],
        logits_to_keep: int = 0,
        blocks: Sequence[Block] | None = None,
    ) -> mx.array:
        """Logits of the last ``logits_to_keep`` (0: all) tokens; fills ``cache``.

        ``blocks``: the model's, if they have just been read.
        """
        model, config = self.model.model, self.model.config
        x = model.embed_tokens(inputs) if inputs_embeds is None else inputs_embeds
        x, tokens = x[0], inputs.shape[1]
        blocks = blocks or require_blocks(self.model)
        if cache[0].keys is None:
            shape = (config.num_key_value_heads, KVCache.step, config.head_dim)
            stacked = mx.zeros((2 * len(blocks), *shape), x.dtype)
        else:
            stacked = cuda_cache.take(cache, tokens)
        filled = count_array(cache[0].offset)
        for taken in cuda_layers.groups(blocks):
            own, packed = blocks[taken], cuda_layers.packings(blocks[taken.start])
            kernel = self._kernel(x.dtype, packed, len(own), taken.start, tokens, stacked.shape[2])
            arrays = cuda_layers.arrays(own)
            x = kernel(x, filled, cuda_kernels.block_counter(), stacked, *arrays)[0]
            mx.async_eval(x)
        logits = cuda_rows.logits(self.model.lm_head, model.norm(x[None, -logits_to_keep:]))
        # As in a decoding step.
        (stacked,) = mx.depends([stacked], [x])
        mx.async_eval(logits, stacked)
        cuda_cache.put(cache, stacked, cuda_cache.views_of(stacked, len(blocks)), tokens)
        return logits

    def _prepare(
        self,
        dtype: mx.Dtype,
        packed: cuda_layers.Packings,
        count: int,
        first: int,
        tokens: int,
        capacity: int,
    ) -> cuda_kernels.Kernel:
        """``x`` ``[tokens, hidden_size]``, the number of cached tokens, zeros, what
        :func:`cuda_cache.take` gives and the arrays of ``count`` layers from number ``first`` on,
        to ``x`` behind them.
        """
        tile = next(tile for tile in ROW_TILES if tokens <= tile)
        config, shared_memory = self.model.config, self._shared_memory(tile)
        # All have to run at once.
        blocks = min(MAX_BLOCKS, cuda_kernels.blocks_together(shared_memory))
        grid = blocks * cuda_kernels.multiprocessors()
        hidden, inner = config.hidden_size, config.intermediate_size
        attended = config.num_attention_heads * config.head_dim
        projected = attended + 2 * config.num_key_value_heads * config.head_dim

        def parts(columns: int, width: int) -> int:
            tiles = math.ceil(columns / BLOCK_COLUMNS)
            return max(1, min(grid // tiles, MAX_SPLITS, width // TILE_K))

        splits = {
            "qkv": parts(projected, hidden),
            "output": parts(hidden, attended),
            "down": parts(hidden, inner),
        }
        products = max(splits["qkv"] * projected, max(splits.values()) * hidden)
        inputs, fill = cuda_layers.parameters(dtype, packed, count)
        outputs = {
            "out": ((tokens, hidden), dtype),
            "normed": ((tokens, hidden), dtype),
            "products": ((products * tokens,), mx.float32),
            "queries": ((tokens, attended), dtype),
            "attended": ((tokens, attended), dtype),
            "gated": ((tokens, inner), dtype),
        }
        return cuda_kernels.prepare(
            f"rows<T, {cuda_layers.sizes(config)}, {cuda_layers.formats(packed)}, {tile}, {count}>",
            [
                *(fill, "x", "filled", "const_cast<unsigned int*>(arrivals)"),
                *("const_cast<T*>(stacked)", "first", "tokens"),
                f"moxin::Splits{{{', '.join(splits)}}}",
                *(cuda_layers.numbers(config), *outputs),
            ],
            {
                "x": dtype,
                "filled": mx.int32,
                "arrivals": mx.uint32,
                "stacked": dtype,
                **inputs,
            },
            outputs,
            file="rows.cu",
            dtype=dtype,
            blocks=grid,
            threads=MULTIPLY_THREADS,
            scalars={"first": first, "tokens": tokens, "capacity": capacity, **splits},
            shared_memory=shared_memory,
            min_blocks=blocks,
        )
