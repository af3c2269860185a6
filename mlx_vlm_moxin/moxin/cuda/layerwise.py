"""Prompts of up to 512 tokens and batched decoding, with a few kernels per layer.

Up to 64 rows our matmul is used, which is limited by reading the weights; above that, MLX's.
Norm, RoPE, attention and SwiGLU between the products are one kernel each, instead of about ten
MLX kernels. A prompt's first layers are computed while the later ones are still being recorded. A
single prompt of up to 64 tokens uses ``fused_prompt``, a single token ``fused_step``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...activations import swiglu
from ...cache import BatchKVCache, KVCache
from . import device, exchange, kv_cache, turns
from . import layerwise_kernels as kernels
from .decoder_layers import (
    DecoderLayer,
    DecoderSizes,
    Projection,
    are_alike,
    caches_fit,
    read_layers,
    read_projection,
)
from .errors import UnsupportedError, require
from .graph import compile_graph
from .kernel import MIN_SIZE, count_array
from .step_attention import step_attention

MAX_TOKENS = 512
# Layers that are submitted to the GPU at a time. Quantised ones may unpack their weights, into
# 436 MB per layer of Moxin, so at most twice as many are submitted and not yet computed.
LAYERS_AT_ONCE = 2

Graphs = dict[tuple, Callable]
# int32 arrays of the number of cached tokens (first element) and, for each sequence, of how many of
# them are masked.
Places = tuple[mx.array, mx.array]


class Layerwise:
    """The pass over new tokens of prompts and batches.

    Args:
        decoder: a ``MistralModel``.
        head: the output head.
    """

    def __init__(self, decoder: nn.Module, head: nn.Module):
        self._decoder, self._head = decoder, head
        # Prompts may come between the steps of a batch, so each keeps its graphs. For the last
        # sizes only: MLX keeps a graph for each shape it has seen.
        self._step_graph = functools.lru_cache(maxsize=1)(
            functools.partial(_compile_step, decoder, head)
        )
        self._layer_graphs = functools.lru_cache(maxsize=1)(_no_graphs)

    def supports(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: Sequence[Any] | None,
        sizes: DecoderSizes,
    ) -> bool:
        """Whether the caches are plain or a batch's and fit the new tokens ``[B, T]``."""
        attention = kernels.attention_memory(kernels.FEW_QUERIES, sizes.head_dim)
        return (
            inputs.shape[1] <= MAX_TOKENS
            and attention <= device.max_shared_memory()
            and caches_fit(cache, (KVCache, BatchKVCache), inputs, inputs_embeds, sizes)
        )

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
        if sizes.group is None:
            return self._run(inputs, inputs_embeds, cache, logits_to_keep, sizes)
        with turns.turn() as launched:  # processes wait for each other
            result = self._run(inputs, inputs_embeds, cache, logits_to_keep, sizes)
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
        filled = count_array(cache[0].size())
        if isinstance(cache[0], BatchKVCache):
            padding = mx.pad(cache[0].left_padding, (0, MIN_SIZE))
        else:
            padding = mx.zeros(inputs.shape[0] + MIN_SIZE, mx.int32)
        places = filled, padding
        if inputs.shape[1] == 1 and inputs_embeds is None and cache[0].keys is not None:
            return self._step(inputs, places, cache, sizes)
        layers = read_layers(self._decoder, sizes)
        x = self._decoder.embed_tokens(inputs) if inputs_embeds is None else inputs_embeds
        shape = None if cache[0].keys is None else cache[0].keys.shape
        graphs = self._layer_graphs(sizes, inputs.shape, shape)
        arrays, norm = kv_cache.held(cache), self._decoder.norm.weight
        h, keys, values = _hidden(layers, norm, sizes, x, places, arrays, graphs, True)
        result = logits(self._head, h[:, -logits_to_keep:])
        if isinstance(cache[0], KVCache):
            kv_cache.extend(cache, keys, values)
        else:
            for layer, key, value in zip(cache, keys, values):
                layer.update_and_fetch(key, value)
        return result

    def _step(
        self,
        inputs: mx.array,
        places: Places,
        cache: Sequence[KVCache | BatchKVCache],
        sizes: DecoderSizes,
    ) -> mx.array:
        """Logits after one token of each sequence, which the kernels append to ``cache``."""
        arrays = kv_cache.reserve(cache)
        step = self._step_graph(sizes, arrays[0].shape)
        result, arrays = step(inputs, places, arrays)
        mx.async_eval(result, arrays)  # as in fused_step
        kv_cache.append(cache, arrays, 1)
        return result


def _no_graphs(*sizes: Any) -> Graphs:
    return {}


def _compile_step(
    decoder: nn.Module, head: nn.Module, sizes: DecoderSizes, shape: tuple[int, ...]
) -> Callable:
    """The graph of one token of each sequence, for caches of ``shape``."""
    return compile_graph(functools.partial(_step, decoder, head, sizes), [decoder, head])


def _step(
    decoder: nn.Module,
    head: nn.Module,
    sizes: DecoderSizes,
    inputs: mx.array,
    places: Places,
    arrays: list[mx.array],
) -> tuple[mx.array, list[mx.array]]:
    """Logits, and ``arrays`` (keys and values of each layer) after the kernels wrote into them."""
    require(are_alike(arrays, len(inputs), sizes), "caches of other shapes or dtypes")
    layers, x, norm = read_layers(decoder, sizes), decoder.embed_tokens(inputs), decoder.norm.weight
    h, keys, values = _hidden(layers, norm, sizes, x, places, arrays, {})
    return logits(head, h), [array for pair in zip(keys, values) for array in pair]


def _hidden(
    layers: Sequence[DecoderLayer],
    last_norm: mx.array,
    sizes: DecoderSizes,
    x: mx.array,
    places: Places,
    arrays: Sequence[mx.array | None],
    graphs: Graphs,
    is_prompt: bool = False,
) -> tuple[mx.array, list[mx.array], list[mx.array]]:
    """Normed hidden states of ``x`` ``[B, T, hidden]``, and keys and values of each layer.

    Args:
        last_norm: weight of the norm after the last layer.
        arrays: keys and values of each layer's cache in turn, ``[B, KV, capacity, head_dim]``.
        graphs: of layers of these sizes, by format; missing ones are added.
        is_prompt: give the keys and values of the new tokens alone, and submit layers to the GPU as
            soon as they are recorded. Otherwise those of the one new token of each sequence are
            appended to ``arrays``.
    """
    norms = [layer.input_norm for layer in layers[1:]] + [last_norm]
    h = x.flatten(0, 1)
    normed = mx.fast.rms_norm(h, layers[0].input_norm, sizes.eps)
    all_keys, all_values, submitted = [], [], None
    for index, (layer, norm) in enumerate(zip(layers, norms)):
        cached = arrays[2 * index : 2 * index + 2]
        if layer.formats not in graphs:
            form = [projection._replace(arrays=None) for projection in layer.projections]
            tokens = kernels.Tokens(*x.shape[:2]) if is_prompt else None
            graphs[layer.formats] = mx.compile(functools.partial(_layer, sizes, tokens, form))
        h, normed, keys, values = graphs[layer.formats](
            h,
            normed,
            [projection.arrays for projection in layer.projections],
            [layer.post_norm, norm],
            [] if cached[0] is None else cached,
            places,
        )
        all_keys.append(keys)
        all_values.append(values)
        if is_prompt and index % LAYERS_AT_ONCE == 0:
            mx.async_eval(h, normed)
            if submitted is not None and any(form.bits < 16 for form in layer.formats):
                mx.eval(submitted)
            submitted = h
    return normed.reshape(x.shape), all_keys, all_values


def logits(head: nn.Module, h: mx.array) -> mx.array:
    """``head`` of hidden states ``h`` ``[B, T, hidden]``, by our kernel where it supports that."""
    rows = h.flatten(0, 1)
    try:
        projection = read_projection(h.dtype, h.shape[-1], head)
    except UnsupportedError:
        return head(h)
    found = kernels.multiply(h.dtype, projection.format, projection.rows, *rows.shape)
    if found is None:
        return head(h)
    (product,) = found[0](rows, *projection.arrays)
    return product.sum(axis=0).astype(h.dtype).reshape(*h.shape[:2], -1)


def _layer(
    sizes: DecoderSizes,
    tokens: kernels.Tokens | None,
    forms: Sequence[Projection],
    h: mx.array,
    normed: mx.array,
    arrays: Sequence[list[mx.array]],
    norms: Sequence[mx.array],
    cached: Sequence[mx.array],
    places: Places,
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """One layer; a function of arrays alone, so that one graph serves all layers of its format.

    Args:
        tokens: of a prompt; None for a step.
        forms: projections without their arrays.
        h: hidden states ``[rows, hidden]``.
        normed: their norm.
        arrays: of the projections.
        norms: weights of the norms after attention and after the MLP.
        cached: keys and values of the cache; nothing if it is empty.

    Returns:
        Hidden states, their norm, keys and values (as ``_hidden``).
    """
    qkv, output, gate_up, down = (form._replace(arrays=found) for form, found in zip(forms, arrays))
    products, splits = _multiply(sizes, qkv, normed)
    if len(products) == 1:
        products, splits = 3 * products, max(1, splits)
    kind = products[0].dtype
    if tokens is None:
        attend = step_attention(sizes, len(h), cached[0].shape[2], kind, splits)
        attended, keys, values = attend(*products, *places, *cached)
    else:
        rotate = kernels.rotate(sizes, tokens, kind, splits)
        queries, keys, values = rotate(*products, *places)
        attend = kernels.attend(sizes, tokens, (cached or (keys,))[0].shape[2])
        (attended,) = attend(queries, *(cached or (keys, values)), keys, values, *places)
    h, normed = _project(sizes, output, attended, h, norms[0])
    products, splits = _multiply(sizes, gate_up, normed, is_gated=True)
    if not splits:
        halves = products if len(products) == 2 else mx.split(products[0], 2, axis=-1)
        products = [swiglu(*halves)]
    h, normed = _project(sizes, down, products[0], h, norms[1])
    return h, normed, keys, values


def _project(
    sizes: DecoderSizes, projection: Projection, x: mx.array, residual: mx.array, norm: mx.array
) -> list[mx.array]:
    """``residual`` plus the product, and its norm."""
    (product,), splits = _multiply(sizes, projection, x)
    if sizes.group is not None:
        return exchange.add_norm(sizes, product, splits, residual, norm)
    add_norm = kernels.add_norm(sizes.dtype, *residual.shape, sizes.eps, splits)
    return add_norm(product, residual, norm)


def _multiply(
    sizes: DecoderSizes, projection: Projection, x: mx.array, is_gated: bool = False
) -> tuple[list[mx.array], int]:
    """``x`` ``[rows, K]`` times all matrices, and the number of parts of the product.

    If there is no kernel for it, MLX's products and 0 parts: one for each matrix, or one for all if
    they are quantised, since they are unpacked into one matrix.
    """
    form = projection.format
    found = kernels.multiply(sizes.dtype, form, projection.rows, *x.shape, is_gated)
    if found is not None:
        kernel, splits = found
        return kernel(x, *projection.arrays), splits
    matrices = projection.arrays
    if form.bits < 16:
        unpack = kernels.unpack_weights(sizes.dtype, form, projection.rows, x.shape[1])
        matrices = unpack(*projection.arrays)
    return [x @ matrix.T for matrix in matrices], 0
