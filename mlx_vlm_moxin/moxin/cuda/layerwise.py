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
from . import device, kv_cache
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

MAX_TOKENS = 512
# Layers that are submitted to the GPU at a time.
LAYERS_AT_ONCE = 2

Graphs = dict[tuple, Callable]


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
        filled = count_array(cache[0].size())
        if isinstance(cache[0], BatchKVCache):
            padding = mx.pad(cache[0].left_padding, (0, MIN_SIZE))
        else:
            padding = mx.zeros(inputs.shape[0] + MIN_SIZE, mx.int32)
        keys, values = [layer.keys for layer in cache], [layer.values for layer in cache]
        is_step = inputs.shape[1] == 1 and inputs_embeds is None and keys[0] is not None
        if is_step:
            step = self._step_graph(sizes, keys[0].shape)
            result, keys, values = step(inputs, filled, padding, keys, values)
        else:
            layers = read_layers(self._decoder, sizes)
            x = self._decoder.embed_tokens(inputs) if inputs_embeds is None else inputs_embeds
            shape = None if keys[0] is None else keys[0].shape
            graphs = self._layer_graphs(sizes, inputs.shape, shape)
            norm, places = self._decoder.norm.weight, (filled, padding)
            h, keys, values = _hidden(
                layers, norm, sizes, x, places, keys, values, graphs, starts_early=True
            )
            result = logits(self._head, h[:, -logits_to_keep:])
        if isinstance(cache[0], KVCache):
            kv_cache.extend(cache, keys, values)
        else:
            for layer, key, value in zip(cache, keys, values):
                layer.update_and_fetch(key, value)
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
    filled: mx.array,
    padding: mx.array,
    keys: list[mx.array],
    values: list[mx.array],
) -> tuple[mx.array, list[mx.array], list[mx.array]]:
    require(are_alike(keys + values, len(inputs), sizes), "caches of other shapes or dtypes")
    layers, x, norm = read_layers(decoder, sizes), decoder.embed_tokens(inputs), decoder.norm.weight
    h, keys, values = _hidden(layers, norm, sizes, x, (filled, padding), keys, values, {})
    return logits(head, h), keys, values


def _hidden(
    layers: Sequence[DecoderLayer],
    last_norm: mx.array,
    sizes: DecoderSizes,
    x: mx.array,
    places: tuple[mx.array, mx.array],
    keys: Sequence[mx.array | None],
    values: Sequence[mx.array | None],
    graphs: Graphs,
    starts_early: bool = False,
) -> tuple[mx.array, list[mx.array], list[mx.array]]:
    """Normed hidden states of ``x`` ``[B, T, hidden]``, new keys and values of all layers.

    Args:
        last_norm: weight of the norm after the last layer.
        places: int32 arrays of the number of cached tokens (first element) and, for each sequence,
            of how many of them are masked.
        keys: of the cache, ``[B, KV, capacity, head_dim]`` for each layer.
        values: the same.
        graphs: of layers of these sizes, by format; missing ones are added.
        starts_early: submit layers to the GPU as soon as they are recorded.
    """
    norms = [layer.input_norm for layer in layers[1:]] + [last_norm]
    h = x.flatten(0, 1)
    normed = mx.fast.rms_norm(h, layers[0].input_norm, sizes.eps)
    new_keys, new_values = [], []
    for index, (layer, norm) in enumerate(zip(layers, norms)):
        if layer.formats not in graphs:
            form = [projection._replace(arrays=None) for projection in layer.projections]
            tokens = kernels.Tokens(*x.shape[:2])
            graphs[layer.formats] = mx.compile(functools.partial(_layer, sizes, tokens, form))
        h, normed, key, value = graphs[layer.formats](
            h,
            normed,
            [projection.arrays for projection in layer.projections],
            [layer.post_norm, norm],
            [] if keys[index] is None else [keys[index], values[index]],
            places,
        )
        new_keys.append(key)
        new_values.append(value)
        if starts_early and index % LAYERS_AT_ONCE == 0:
            mx.async_eval(h, normed)
    return normed.reshape(x.shape), new_keys, new_values


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
    tokens: kernels.Tokens,
    forms: Sequence[Projection],
    h: mx.array,
    normed: mx.array,
    arrays: Sequence[list[mx.array]],
    norms: Sequence[mx.array],
    cached: Sequence[mx.array],
    places: tuple[mx.array, mx.array],
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """One layer; a function of arrays alone, so that one graph serves all layers of its format.

    Args:
        forms: projections without their arrays.
        h: hidden states ``[rows, hidden]``.
        normed: their norm.
        arrays: of the projections.
        norms: weights of the norms after attention and after the MLP.
        cached: keys and values of the cache; nothing if it is empty.
        places: as in ``_hidden``.

    Returns:
        Hidden states, their norm, new keys and new values.
    """
    qkv, output, gate_up, down = (form._replace(arrays=found) for form, found in zip(forms, arrays))
    products, splits = _multiply(sizes, qkv, normed)
    if splits:
        products = 3 * products
    queries, key, value = kernels.rotate(sizes, tokens, splits)(*products, *places)
    keys, values = cached or (key, value)
    attend = kernels.attend(sizes, tokens, keys.shape[2])
    (attended,) = attend(queries, keys, values, key, value, *places)
    h, normed = _project(sizes, output, attended, h, norms[0])
    products, splits = _multiply(sizes, gate_up, normed, is_gated=True)
    gated = products[0] if splits else swiglu(*products)
    h, normed = _project(sizes, down, gated, h, norms[1])
    return h, normed, key, value


def _project(
    sizes: DecoderSizes, projection: Projection, x: mx.array, residual: mx.array, norm: mx.array
) -> list[mx.array]:
    """``residual`` plus the product, and its norm."""
    (product,), splits = _multiply(sizes, projection, x)
    add_norm = kernels.add_norm(sizes.dtype, *residual.shape, sizes.eps, splits)
    return add_norm(product, residual, norm)


def _multiply(
    sizes: DecoderSizes, projection: Projection, x: mx.array, is_gated: bool = False
) -> tuple[list[mx.array], int]:
    """``x`` ``[rows, K]`` times all matrices, and the number of parts of the product.

    If there is no kernel for it, one product for each matrix and 0 parts.
    """
    form = projection.format
    found = kernels.multiply(sizes.dtype, form, projection.rows, *x.shape, is_gated)
    if found is not None:
        kernel, splits = found
        return kernel(x, *projection.arrays), splits
    arrays = projection.arrays
    if form.bits < 16:
        # MLX needs a minute to compile its quantised product for a prompt's size.
        options = {"group_size": form.group_size, "bits": form.bits}
        triples = zip(*(arrays[first::3] for first in range(3)))
        arrays = [mx.dequantize(*triple, **options) for triple in triples]
    return [x @ array.T for array in arrays], 0
