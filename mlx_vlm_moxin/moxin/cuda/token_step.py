"""One decoding step of a single row on NVIDIA GPUs, in a kernel of our own.

Such a step reads every weight once and computes little. MLX takes some 13 kernels a layer for
it, which its host code cannot launch as fast as they run, and its packed product reads at half
of the memory's speed. Here one launch does many layers. Prompts and batches are in
``short_prompt`` and ``rows``; everything else (training, other formats, other devices) goes
through the modules.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...cache import KVCache
from ..config import TextConfig
from . import compiler, kv_cache, layer_kernels
from .decoder_weights import (
    Block,
    LastGraph,
    Packing,
    caches_fit,
    count_array,
    require_blocks,
)

THREADS = 512
# Of a head's keys.
MAX_SPLITS = 8


class DecodeStep:
    """A ``LanguageModel``'s step of one token of one row, compiled into one graph.

    Args:
        model: of which :func:`decoder_weights.read_blocks` gives the blocks.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._graph = LastGraph(lambda: mx.compile(self._forward, inputs=model.state))

    def takes(self, inputs: mx.array, cache: Sequence[Any] | None) -> bool:
        """Whether ``inputs`` is one token of one row that follows others in plain caches."""
        return (
            inputs.shape == (1, 1)
            and caches_fit(cache, (KVCache,), inputs, None, self.model.model.norm.weight.dtype)
            and cache[0].offset > 0
        )

    def __call__(self, inputs: mx.array, cache: Sequence[KVCache]) -> mx.array:
        """Logits ``[1, 1, vocab_size]`` after the token ``inputs`` ``[1, 1]``; fills ``cache``.

        Raises:
            ValueError: if no kernel takes the model any more.
        """
        stacked = kv_cache.take(cache)
        step = self._graph(stacked.shape)
        logits, stacked, views = step(inputs, count_array(cache[0].offset), stacked)
        # MLX does not know that the kernels write into the cache: it orders what it hands to the
        # GPU at different times, and might not what it hands over together.
        mx.async_eval(logits, stacked)
        kv_cache.put(cache, stacked, views, 1)
        return logits

    def _forward(
        self, inputs: mx.array, position: mx.array, stacked: mx.array
    ) -> tuple[mx.array, mx.array, list[mx.array]]:
        model, blocks = self.model.model, require_blocks(self.model)
        x = model.embed_tokens(inputs).reshape(-1)
        for taken in layer_kernels.groups(blocks):
            x = self._layers(blocks[taken], taken.start, x, position, stacked)
        logits = self.model.lm_head(model.norm(x.reshape(1, 1, -1)))
        return logits, *kv_cache.written(stacked, x, len(blocks))

    def _layers(
        self,
        blocks: Sequence[Block],
        first: int,
        x: mx.array,
        position: mx.array,
        stacked: mx.array,
    ) -> mx.array:
        """``x`` ``[hidden_size]`` behind ``blocks``, which begin with number ``first``."""
        config, dtype, packed = self.model.config, x.dtype, layer_kernels.packings(blocks[0])
        heads, width = config.num_attention_heads, config.head_dim
        splits = max(1, min(compiler.multiprocessors() // heads, MAX_SPLITS))
        outputs = {
            "out": (x.shape, dtype),
            "queries": ((heads * width,), dtype),
            "sums": ((heads * splits * (width + 2),), mx.float32),
            "gated": ((config.intermediate_size,), dtype),
        }
        kernel = layer_kernels.prepare(
            *("decode", config, packed, len(blocks), first, stacked.shape[2], outputs),
            dtype=dtype,
            template=(splits, THREADS),
            file="decode.cu",
            blocks=compiler.multiprocessors(),
            threads=THREADS,
            shared_memory=_shared_memory(config, packed),
        )
        return layer_kernels.launch(kernel, blocks, x, position, stacked)


def _shared_memory(config: TextConfig, packings: Sequence[Packing]) -> int:
    """Bytes that a step of the kernel needs at most, as in kernels/matvec.cu and attention.cu."""
    attended = config.num_attention_heads * config.head_dim
    widths = (config.hidden_size, attended, config.hidden_size, config.intermediate_size)
    inputs = [
        2 * width + (width * packing.bits // 32 if packing.bits < 16 else 16)
        for width, packing in zip(widths, packings)
    ]
    return max(*inputs, THREADS // 32 * 4 * (config.head_dim + 2))
