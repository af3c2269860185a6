"""A short prompt, such as another question about a picture: many layers in one launch.

As in a decoding step every weight is read once, and launching some 250 kernels would take longer
than they run. Longer prompts and batches use ``layerwise``.
"""

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...cache import KVCache
from . import device, fused_layers, kernel, kv_cache, layerwise_graph, tiling, turns
from .cache_checks import caches_fit
from .decoder_layers import read_layers
from .decoder_sizes import DecoderSizes
from .embeddings import embed
from .joined_layers import JoinedLayers


class FusedPrompt:
    """The pass over up to 64 tokens of one sequence.

    Args:
        decoder: a ``MistralModel``.
        head: the output head.
    """

    def __init__(self, decoder: nn.Module, head: nn.Module):
        self._decoder, self._head = decoder, head
        self._joined = JoinedLayers(decoder)

    def supports(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: Sequence[Any] | None,
        sizes: DecoderSizes,
    ) -> bool:
        """Whether ``inputs`` ``[1, T]`` are few and the caches are plain."""
        widths = (sizes.hidden, sizes.attended, sizes.intermediate)
        return (
            sizes.group is None
            and inputs.shape[0] == 1
            and inputs.shape[1] <= tiling.ROW_TILES[-1]
            and caches_fit(cache, (KVCache,), inputs, inputs_embeds, sizes)
            and all(width % tiling.TILE_K == 0 for width in widths)
            and shared_memory(sizes, tiling.ROW_TILES[-1]) <= device.max_shared_memory()
        )

    def __call__(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: Sequence[KVCache],
        logits_to_keep: int,
        sizes: DecoderSizes,
    ) -> mx.array:
        """Logits of the last ``logits_to_keep`` (0: all) tokens; fills ``cache``.

        Raises:
            UnsupportedError: if the kernels do not compute the decoder; ``cache`` is as before.
        """
        decoder, layers = self._decoder, len(self._decoder.layers)
        joined = self._joined.read(sizes)
        x = embed(decoder.embed_tokens, inputs) if inputs_embeds is None else inputs_embeds
        x, tokens = x[0], inputs.shape[1]
        if cache[0].keys is None:
            arrays = kv_cache.empty(layers, sizes.kv_heads, sizes.head_dim, sizes.dtype)
        else:
            arrays = kv_cache.reserve(cache, tokens)
        filled = kernel.count_array(cache[0].offset)
        with turns.turn() as launched:
            for window in fused_layers.prompt_windows(layers):
                # The GPU works on these layers while the next ones are read.
                found = joined[window] if joined else read_layers(decoder, sizes, window)
                caches_of_window = arrays[2 * window.start : 2 * window.stop]
                for group in fused_layers.groups(found):
                    some = found[group]
                    form, capacity = some[0].form, arrays[0].shape[2]
                    arguments = form.formats, len(some), tokens, capacity, form.is_joined
                    fused = prompt_kernel(sizes, *arguments)
                    caches = caches_of_window[2 * group.start : 2 * group.stop]
                    x = fused_layers.launch(fused, some, x, filled, caches)
                    mx.async_eval(x)
            logits = layerwise_graph.logits(self._head, decoder.norm(x[None, -logits_to_keep:]))
            arrays = kv_cache.after(arrays, x)
            mx.async_eval(logits, arrays)  # as in fused_step
            launched(x)
        kv_cache.append(cache, arrays, tokens)
        return logits


def shared_memory(sizes: DecoderSizes, tile: int) -> int:
    """Bytes per thread block, for a tile of so many rows."""
    attention = tiling.attention_memory(tiling.FEW_QUERIES, sizes.head_dim)
    return max(tiling.product_memory(tile), attention)


@functools.lru_cache
def prompt_kernel(
    sizes: DecoderSizes,
    formats: fused_layers.Formats,
    count: int,
    tokens: int,
    capacity: int,
    is_joined: bool = False,
) -> kernel.Kernel:
    """The kernel of ``count`` layers for a prompt.

    Args:
        sizes: of the decoder.
        formats: of the four projections of every layer.
        tokens: of the prompt, at most 64.
        capacity: positions of the cached arrays.
        is_joined: whether a layer is one array (``joined_form``).

    Returns:
        A kernel for ``fused_layers.launch``; its first result is the hidden states
        ``[tokens, hidden]``.
    """
    # One thread block per multiprocessor, so that all run at once.
    tile, grid, dtype = tiling.row_tile(tokens), device.multiprocessors(), sizes.dtype
    projected = sizes.attended + 2 * sizes.keys
    splits = {
        "qkv_splits": tiling.count_splits(projected, sizes.hidden, grid),
        "output_splits": tiling.count_splits(sizes.hidden, sizes.attended, grid),
        "down_splits": tiling.count_splits(sizes.hidden, sizes.intermediate, grid),
    }
    products = max(splits["qkv_splits"] * projected, max(splits.values()) * sizes.hidden)
    return fused_layers.build(
        "fused_prompt",
        sizes,
        formats,
        count,
        {
            "ROWS": tile,
            "TILES": tiling.TILES,
            "GATED_TILES": tiling.FUSED_GATED_TILES,
            "UNROLL": False,
            **tiling.TILING,
        },
        {
            "out": ((tokens, sizes.hidden), dtype),
            "scratch": kernel.scratch(
                (tile * sizes.hidden, dtype),  # normed
                (tile * sizes.attended, dtype),  # queries
                (tile * sizes.attended, dtype),  # attended
                (tile * sizes.intermediate, dtype),  # gated
                (tokens * products, mx.float32),
            ),
        },
        {"capacity": capacity, "tokens": tokens, **splits},
        blocks=grid,
        threads=tiling.MULTIPLY_THREADS,
        shared_memory=shared_memory(sizes, tile),
        is_joined=is_joined,
    )
