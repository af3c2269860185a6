"""The graph of decoder layers that are computed one after the other, each by a few kernels.

Up to 64 rows our matmul is used, which is limited by reading the weights. Above that Hopper has
another one, for plain weights up to a few hundred rows, which needs its input in a particular
order: the kernel that computes the input writes it in that order. Otherwise MLX's is used.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from . import exchange, matmul_kernels, prompt_matmul
from . import layerwise_kernels as kernels
from .activations import swiglu
from .arranged import Arranged, Order, arrange
from .decoder_sizes import DecoderSizes
from .errors import UnsupportedError, require
from .kv_cache import Places
from .layer_form import QKV, DecoderLayer, LayerForm
from .projections import Projection, read_projection
from .step_attention import step_attention

# Layers that are submitted to the GPU at a time. Quantised ones may unpack their weights, into
# 436 MB per layer of Moxin, so at most twice as many are submitted and not yet computed.
LAYERS_AT_ONCE = 2

Graphs = dict[tuple, Callable]


def hidden_states(
    layers: Iterable[DecoderLayer],
    last_norm: mx.array,
    sizes: DecoderSizes,
    x: mx.array,
    places: Places,
    arrays: Sequence[mx.array | None],
    graphs: Graphs,
    tokens: kernels.Tokens | None = None,
    kept: slice = slice(None),
) -> tuple[mx.array, list[mx.array], list[mx.array]]:
    """Normed hidden states of ``x`` ``[B, T, hidden]``, and keys and values of each layer.

    Args:
        layers: may be read while the GPU computes the ones before.
        last_norm: weight of the norm after the last layer.
        arrays: keys and values of each layer's cache in turn, ``[B, KV, capacity, head_dim]``.
        graphs: of layers of these sizes, by form; missing ones are added.
        tokens: of a prompt: give the keys and values of the new tokens alone, and submit layers to
            the GPU as soon as they are recorded. Without it those of the one new token of each
            sequence are appended to ``arrays``.
        kept: tokens of each sequence of a prompt whose hidden states are needed. The last layer
            computes the other tokens' keys and values alone.
    """
    h, normed, all_keys, all_values, submitted = x.flatten(0, 1), None, [], [], None
    flags = prompt_matmul.flags()
    rows = len(h)
    for index, (layer, following) in enumerate(_with_next(layers)):
        if normed is None:
            normed = mx.fast.rms_norm(h, layer.input_norm, sizes.eps)
        cached = arrays[2 * index : 2 * index + 2]
        some = slice(None) if following else kept
        next_order = following and prompt_matmul.find_order(sizes, following.formats[QKV], rows)
        key = layer.form, next_order, some.start, some.stop
        if key not in graphs:
            layer_graph = functools.partial(_layer, layer.form, tokens, some, next_order)
            graphs[key] = mx.compile(layer_graph)
        h, normed, keys, values = graphs[key](
            h,
            normed,
            layer.arrays,
            following.input_norm if following else last_norm,
            [] if cached[0] is None else cached,
            places,
            flags,
        )
        all_keys.append(keys)
        all_values.append(values)
        if tokens is not None and index % LAYERS_AT_ONCE == 0:
            mx.async_eval(h, normed)
            if submitted is not None and _unpacks(layer.form, rows):
                mx.eval(submitted)
            submitted = h
    return normed.reshape(x.shape[0], -1, x.shape[2]), all_keys, all_values


def _with_next(
    layers: Iterable[DecoderLayer],
) -> Iterator[tuple[DecoderLayer, DecoderLayer | None]]:
    """Each layer with the one after it."""
    before = None
    for layer in layers:
        if before is not None:
            yield before, layer
        before = layer
    yield before, None


def _unpacks(form: LayerForm, rows: int) -> bool:
    """Whether weights of such layers are unpacked for products of so many rows."""
    return any(
        kind.bits < 16 and prompt_matmul.find_order(form.sizes, kind, rows) is None
        for kind in form.formats
    )


def logits(head: nn.Module, h: mx.array) -> mx.array:
    """``head`` of hidden states ``h`` ``[B, T, hidden]``, by our kernel where it supports that."""
    rows = h.flatten(0, 1)
    try:
        projection = read_projection(h.dtype, h.shape[-1], head)
    except UnsupportedError:
        return head(h)
    found = matmul_kernels.multiply(h.dtype, projection.format, projection.rows, *rows.shape)
    if found is None:
        return head(h)
    (product,) = found[0](rows, *projection.arrays)
    return product.sum(axis=0).astype(h.dtype).reshape(*h.shape[:2], -1)


def _layer(
    form: LayerForm,
    tokens: kernels.Tokens | None,
    kept: slice,
    next_order: Order | None,
    h: mx.array,
    normed: mx.array,
    arrays: list[mx.array],
    next_norm: mx.array,
    cached: Sequence[mx.array],
    places: Places,
    flags: mx.array,
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """One layer; a function of arrays alone, so that one graph serves all layers of its form.

    Args:
        form: of the layer.
        tokens: of a prompt; None for a step.
        kept: tokens of each sequence of a prompt whose hidden states are given.
        next_order: in which the next layer reads its input, if it needs one.
        h: hidden states ``[rows, hidden]``.
        normed: their norm, as the last layer returned it.
        arrays: of the layer.
        next_norm: weight of the norm after the layer.
        cached: keys and values of the cache; nothing if it is empty.
        flags: of the products of prompts, which follow each other.

    Returns:
        Hidden states, their norm in ``next_order``, keys and values (as
        ``hidden_states``).
    """
    # MLX compares shapes and dtypes in each call, and traces a graph for others again.
    layer, sizes = DecoderLayer(form, arrays), form.sizes
    layer.check()
    is_same = next_norm.shape == (sizes.hidden,) and next_norm.dtype == sizes.dtype
    require(is_same, "a norm is of another shape or dtype")

    def find_order(projection: Projection) -> Order | None:
        return prompt_matmul.find_order(sizes, projection.format, len(h))

    qkv, output, gate_up, down = layer.projections
    if normed.ndim > 2:
        normed = Arranged(normed, h.shape)
    products, splits = _multiply(sizes, qkv, normed, flags)
    if len(products) == 1:
        products, splits = 3 * products, max(1, splits)
    kind = products[0].dtype
    if tokens is None:
        attend = step_attention(sizes, len(h), cached[0].shape[2], kind, splits)
        attended, keys, values = attend(*products, *places, *cached)
    else:
        rotate = kernels.rotate(sizes, tokens, kind, splits)
        queries, keys, values = rotate(*products, *places)
        order = find_order(output) if kept == slice(None) else None
        attend = kernels.attend(sizes, tokens, (cached or (keys,))[0].shape[2], order)
        (attended,) = attend(queries, *(cached or (keys, values)), keys, values, *places)
        if order is not None:
            attended = Arranged(attended, (len(h), sizes.attended))
        if kept != slice(None):
            attended, h = (
                x.reshape(tokens.batch, tokens.length, -1)[:, kept].flatten(0, 1)
                for x in (attended, h)
            )
    order = find_order(gate_up)
    h, normed = _project(sizes, output, attended, h, layer.post_norm, order, flags)
    if order is not None:
        normed = Arranged(normed, h.shape)
    order = find_order(down)
    products, splits = _multiply(sizes, gate_up, normed, flags, True, order)
    if not splits:
        products = [swiglu(products)]
    h, normed = _project(sizes, down, products[0], h, next_norm, next_order, flags)
    return h, normed, keys, values


def _project(
    sizes: DecoderSizes,
    projection: Projection,
    x: mx.array | Arranged,
    residual: mx.array,
    norm: mx.array,
    order: Order | None,
    flags: mx.array,
) -> list[mx.array]:
    """``residual`` plus the product, and its norm in ``order``."""
    (product,), splits = _multiply(sizes, projection, x, flags)
    if sizes.group is None:
        kind = product.dtype
        add_norm = kernels.add_norm(sizes.dtype, *residual.shape, sizes.eps, kind, splits, order)
        return add_norm(product, residual, norm)
    return exchange.add_norm(sizes, product, splits, residual, norm, order)


def _multiply(
    sizes: DecoderSizes,
    projection: Projection,
    x: mx.array | Arranged,
    flags: mx.array,
    is_gated: bool = False,
    next_order: Order | None = None,
) -> tuple[list[mx.array], int]:
    """``x`` ``[rows, K]`` times all matrices, and the number of parts of the product.

    If there is no kernel for it, MLX's products and 0 parts: one for each matrix, or one for all if
    they are quantised, since they are unpacked into one matrix.

    Args:
        x: in any order.
        flags: of the products of prompts.
        is_gated: compute ``silu`` of the first product times the second one.
        next_order: in which to give a gated product, if there is a kernel for that.
    """
    form, matrices = projection.format, projection.rows
    order = prompt_matmul.find_order(sizes, form, x.shape[0])
    if order is not None:
        if not isinstance(x, Arranged):
            (array,) = arrange(sizes.dtype, order, *x.shape)(x)
            x = Arranged(array, x.shape)
        kernel, splits = prompt_matmul.multiply(
            sizes.dtype,
            form,
            matrices,
            order,
            *x.shape,
            next_order,
            is_gated,
            prompt_matmul.part_dtype(sizes.dtype),
        )
        products = kernel(x.array, *projection.arrays, flags)[:1]
        if next_order is not None:
            products = [Arranged(products[0], (x.shape[0], matrices[0]))]
        return products, splits
    found = matmul_kernels.multiply(sizes.dtype, form, matrices, *x.shape, is_gated)
    if found is not None:
        kernel, splits = found
        return kernel(x, *projection.arrays), splits
    arrays = projection.arrays
    if form.bits < 16:
        unpack = matmul_kernels.unpack_weights(sizes.dtype, form, matrices, x.shape[1])
        arrays = unpack(*projection.arrays)
    return [x @ matrix.T for matrix in arrays], 0
