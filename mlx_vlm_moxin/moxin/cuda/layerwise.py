"""Prompts and batched decoding, with a few kernels per layer.

Up to 64 rows our matmul is used, which is limited by reading the weights; above that, another on
Hopper (for plain weights up to a few hundred rows), otherwise MLX's. Norm, RoPE, attention and
SwiGLU between the products are one kernel each, instead of about ten MLX kernels. A prompt's first
layers are computed while the later ones are still being recorded. Long prompts are computed in
pieces. A single prompt of up to 64 tokens uses ``fused_prompt``, a single token ``fused_step``.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...cache import BatchKVCache, KVCache
from . import device, joined_weights, kv_cache, prompt_matmul, tiling, turns
from .cache_checks import are_alike, caches_fit
from .decoder_layers import read_layer
from .decoder_sizes import DecoderSizes
from .embeddings import embed
from .errors import require
from .graph import step_graphs
from .kernel import count_array
from .layer_form import GATE_UP, QKV, DecoderLayer
from .layerwise_graph import Graphs, hidden_states, logits
from .layerwise_kernels import Tokens
from .prompt_pieces import in_pieces

# In a pass without caches, such as that of OpenVLA-OFT: three pictures and a chunk of actions.
MAX_WHOLE_TOKENS = 2048
# Sizes of batches and caches whose steps keep their graphs of a layer, and those of a whole step.
LAYER_GRAPHS, STEP_GRAPHS = 64, 4
# Steps of the same sizes after which a whole step is traced. That takes as long as ten steps' host
# code, which takes half as long from then on.
STEADY_STEPS = 16


class Layerwise:
    """The pass over new tokens of prompts and batches.

    Args:
        decoder: a ``MistralModel``.
        head: the output head.
    """

    def __init__(self, decoder: nn.Module, head: nn.Module):
        self._decoder, self._head = decoder, head
        # A graph of one layer serves all layers, so that a batch whose size changes with each
        # request does not wait for the trace of a whole step. Prompts may come between the steps of
        # a batch, so each keeps its graphs; for the last sizes only, because MLX would keep one for
        # each shape it has seen.
        self._step_graph = step_graphs(_step, decoder, head, STEP_GRAPHS)
        self._step_layer_graphs = functools.lru_cache(maxsize=LAYER_GRAPHS)(_no_graphs)
        self._last_step: tuple | None = None
        self._steady_steps = 0
        self._layer_graphs = functools.lru_cache(maxsize=1)(_no_graphs)

    def supports(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: Sequence[Any] | None,
        sizes: DecoderSizes,
    ) -> bool:
        """Whether the pass over new tokens can be computed here.

        Args:
            inputs: ids ``[B, T]``.
            inputs_embeds: their embeddings ``[B, T, hidden]``, if given instead of ids.
            cache: one per layer; plain caches or those of a batch.
            sizes: of the decoder.
        """
        kinds = KVCache, BatchKVCache
        return _can_attend(sizes) and caches_fit(cache, kinds, inputs, inputs_embeds, sizes)

    def __call__(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: Sequence[KVCache | BatchKVCache],
        logits_to_keep: int,
        sizes: DecoderSizes,
    ) -> mx.array:
        """Logits of the last ``logits_to_keep`` (0: all) tokens; fills ``cache``.

        Raises:
            UnsupportedError: if the kernels do not compute the decoder; ``cache`` is as before.
        """
        arguments = inputs, inputs_embeds, cache, logits_to_keep
        run = functools.partial(self._run, sizes=sizes)
        if sizes.group is None:
            return in_pieces(run, *arguments)
        with turns.turn() as launched:  # processes wait for each other
            result = in_pieces(run, *arguments)
            mx.async_eval(result)
            launched(result)
        return result

    def _run(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: Sequence[KVCache | BatchKVCache],
        logits_to_keep: int,
        sizes: DecoderSizes,
    ) -> mx.array:
        places = kv_cache.places(cache, inputs.shape[0])
        if inputs.shape[1] == 1 and inputs_embeds is None and cache[0].keys is not None:
            return self._step(inputs, places, cache, sizes)
        kept = slice(-logits_to_keep or None, None)
        layers = self._read_layers(sizes, inputs.size, _count(inputs.shape, kept))
        table = self._decoder.embed_tokens
        x = embed(table, inputs) if inputs_embeds is None else inputs_embeds
        shape = None if cache[0].keys is None else cache[0].keys.shape
        is_extended = isinstance(cache[0], KVCache) or len(inputs) == 1
        count = inputs.shape[1]
        room = kv_cache.room(cache, count) if is_extended else 0
        tokens = Tokens(*inputs.shape, capacity=room)
        graphs = self._layer_graphs(sizes, tokens, shape)
        arrays, norm = kv_cache.held(cache), self._decoder.norm.weight
        h, keys, values = hidden_states(
            layers, norm, sizes, x, places, arrays, graphs, tokens, kept
        )
        result = logits(self._head, h)
        new = [array for pair in zip(keys, values) for array in pair]
        if room:
            kv_cache.append(cache, new, count)
        elif is_extended:
            kv_cache.extend(cache, new)
        else:
            for layer, key, value in zip(cache, keys, values):
                layer.update_and_fetch(key, value)
        return result

    def hidden_states(
        self, x: mx.array, is_causal: bool, kept: slice, sizes: DecoderSizes
    ) -> mx.array:
        """Hidden states of ``x`` ``[B, T, hidden]``, whole sequences, after the final norm.

        Args:
            is_causal: whether a token sees only those before it and itself.
            kept: tokens of each sequence whose hidden states are given.

        Raises:
            UnsupportedError: if the kernels do not compute the decoder, or not for ``x``.
        """
        batch, length, _ = x.shape
        require(_can_attend(sizes), "attention needs more shared memory")
        require(sizes.group is None, "the decoder is sharded")
        require(x.dtype == sizes.dtype, "embeddings of another dtype")
        limit = min(sizes.window or MAX_WHOLE_TOKENS, MAX_WHOLE_TOKENS)
        require(1 < length <= limit, f"sequences of one token, or of more than {limit}")
        layers = self._read_layers(sizes, batch * length, _count((batch, length), kept))
        tokens = Tokens(batch, length, is_causal)
        graphs = self._layer_graphs(sizes, tokens, None)
        places = count_array(0), kv_cache.no_padding(batch)
        arrays, norm = 2 * len(self._decoder.layers) * [None], self._decoder.norm.weight
        h, _, _ = hidden_states(layers, norm, sizes, x, places, arrays, graphs, tokens, kept)
        return h

    def _read_layers(self, sizes: DecoderSizes, rows: int, kept: int) -> Iterator[DecoderLayer]:
        """One layer after the other, as it is multiplied by so many ``rows``.

        Args:
            kept: rows of the last layer whose hidden states are needed.
        """
        blocks = self._decoder["layers"]
        for index, block in enumerate(blocks):
            layer = read_layer(block, sizes)
            counts = {QKV: rows, GATE_UP: kept if index == len(blocks) - 1 else rows}
            projections = [which for which in counts if _uses_mlx(layer, which, counts[which])]
            if projections:
                layer.check()  # the graph of the layer reads the joined weights instead
                joined = joined_weights.join(layer, projections)
                if joined is None:
                    del layer  # which would keep the weights that are moved
                    joined_weights.move(block)
                    joined = joined_weights.join(read_layer(block, sizes), projections)
                layer = joined
            yield layer

    def _step(
        self,
        inputs: mx.array,
        places: kv_cache.Places,
        cache: Sequence[KVCache | BatchKVCache],
        sizes: DecoderSizes,
    ) -> mx.array:
        """Logits after one token of each sequence, which the kernels append to ``cache``."""
        arrays = kv_cache.reserve(cache)
        kind = sizes, arrays[0].shape
        self._steady_steps = self._steady_steps + 1 if kind == self._last_step else 0
        self._last_step = kind
        if self._steady_steps < STEADY_STEPS:
            graphs = self._step_layer_graphs(*kind)
            step = functools.partial(_step, self._decoder, self._head, sizes, graphs=graphs)
        else:
            step = self._step_graph(*kind)
        result, arrays = step(inputs, places, arrays)
        mx.async_eval(result, arrays)  # as in fused_step
        kv_cache.append(cache, arrays, 1)
        return result


def _count(shape: Sequence[int], kept: slice) -> int:
    """Number of ``kept`` tokens of sequences ``[B, T]``."""
    return shape[0] * len(range(*kept.indices(shape[1])))


def _uses_mlx(layer: DecoderLayer, projection: int, rows: int) -> bool:
    """Whether MLX multiplies so many rows by a projection, whose matrices are plain."""
    form = layer.formats[projection]
    if rows <= tiling.ROW_TILES[-1] or form.bits < 16:
        return False
    return prompt_matmul.find_order(layer.form.sizes, form, rows) is None


def _can_attend(sizes: DecoderSizes) -> bool:
    """Whether attention has enough shared memory."""
    needed = tiling.attention_memory(tiling.FEW_QUERIES, sizes.head_dim)
    return needed <= device.max_shared_memory()


def _no_graphs(*sizes: Any) -> Graphs:
    return {}


def _step(
    decoder: nn.Module,
    head: nn.Module,
    sizes: DecoderSizes,
    inputs: mx.array,
    places: kv_cache.Places,
    arrays: list[mx.array],
    graphs: Graphs | None = None,
) -> tuple[mx.array, list[mx.array]]:
    """Logits, and ``arrays`` (keys and values of each layer) after the kernels wrote into them.

    Args:
        graphs: of layers of these sizes, if they are kept.
    """
    require(are_alike(arrays, len(inputs), sizes), "caches of other shapes or dtypes")
    layers = [read_layer(block, sizes) for block in decoder["layers"]]
    x = embed(decoder.embed_tokens, inputs)
    norm, graphs = decoder.norm.weight, {} if graphs is None else graphs
    h, keys, values = hidden_states(layers, norm, sizes, x, places, arrays, graphs)
    return logits(head, h), [array for pair in zip(keys, values) for array in pair]
