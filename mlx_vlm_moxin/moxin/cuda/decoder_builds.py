"""The kernels of a decoder with the sizes that its first uses have, in the order of these uses.

A prompt with a picture, single tokens, further questions, batches; prompts of other lengths.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from . import (
    activations,
    exchange,
    fused_batch,
    fused_layers,
    fused_prompt,
    fused_step,
    kv_cache,
    matmul_kernels,
    peers,
    prompt_matmul,
    tiling,
)
from . import layerwise_kernels as kernels
from .arranged import Order, arrange
from .decoder_layers import read_layers
from .decoder_sizes import DecoderSizes, read_sizes
from .joined_layers import can_join
from .layer_form import DecoderLayer
from .projections import Projection, read_projection
from .step_attention import step_attention

# Tokens of a picture and a question, with one of 16 to 31.
PROMPT = 288
# The same with shorter and longer questions, for which Hopper's products have other kernels.
OTHER_QUESTIONS = (272, 304, 320)
LONG_PROMPT = 384
# Tokens of a further question about a picture.
QUESTION = 24
# Tokens of OpenVLA-OFT's pass with two pictures, and values of its chunk of actions.
WHOLE = 590
CHUNK = 56
# Sequences of a batch.
BATCH = 8
# Positions of the cache, and of a longer one.
CAPACITY = 512
LONG_CAPACITY = 1024

Build = Callable[[], object]


def decoder_builds(decoder: nn.Module, head: nn.Module) -> Iterator[Build]:
    """The kernels of a ``MistralModel`` and its output head, in the order of their use."""
    sizes = read_sizes(decoder)
    layers = read_layers(decoder, sizes)
    alike, are_joined = _alike(layers), can_join([layer.form for layer in layers])
    output = read_projection(sizes.dtype, sizes.hidden, head)
    yield from _unpacks(sizes, alike)
    yield from _layer_products(sizes, alike, PROMPT)
    for is_joined in (True, False):
        arguments = sizes.dtype, PROMPT, sizes.intermediate, is_joined
        yield partial(activations.swiglu_kernel, *arguments)
    tokens, orders = kernels.Tokens(1, PROMPT), _orders(sizes, alike, PROMPT)
    for order in orders:
        yield partial(kernels.attend, sizes, tokens, CAPACITY, order)
    for product in _products(sizes):
        yield partial(kernels.rotate, sizes, tokens, *product)
    yield from _add_norms(sizes, PROMPT, orders)
    for rows in OTHER_QUESTIONS:
        yield from _arranged_builds(sizes, alike, rows)
    yield from _layer_products(sizes, alike, 1)  # of the last layer
    yield _multiply(sizes, output, 1, sizes.hidden)
    groups = list(fused_layers.groups(layers)) if fused_step.can_add_up(sizes) else []
    for capacity in (CAPACITY, LONG_CAPACITY):
        for group in groups:
            some = layers[group]
            arguments = sizes, some[0].formats, len(some), capacity, are_joined
            yield partial(fused_step.step_kernel, *arguments)
    cached = 1, sizes.kv_heads, CAPACITY, sizes.head_dim
    yield partial(kv_cache.gather_caches, sizes.dtype, 2 * len(layers), cached, None, CAPACITY)
    for tokens in (QUESTION, *tiling.ROW_TILES) if sizes.group is None else ():
        for window in fused_layers.prompt_windows(len(layers)):
            for group in fused_layers.groups(layers[window]):
                some = layers[window][group]
                arguments = sizes, some[0].formats, len(some), tokens, CAPACITY, are_joined
                yield partial(fused_prompt.prompt_kernel, *arguments)
    yield from _layer_products(sizes, alike, LONG_PROMPT)
    if fused_batch.most_positions(sizes, layers):
        for group in fused_layers.groups(layers):
            some = layers[group]
            arguments = sizes, some[0].formats, len(some), BATCH, CAPACITY, are_joined
            yield partial(fused_batch.batch_kernel, *arguments)
    yield from _layer_products(sizes, alike, BATCH)
    for product in _products(sizes):
        yield partial(step_attention, sizes, BATCH, CAPACITY, *product)
    yield from _add_norms(sizes, BATCH)
    yield _multiply(sizes, output, BATCH, sizes.hidden)
    for rows in tiling.ROW_TILES:
        yield from _layer_products(sizes, alike, rows)
        yield _multiply(sizes, output, rows, sizes.hidden)


def prompt_builds(decoder: nn.Module) -> Iterator[Build]:
    """The additional kernels of prompts of all lengths."""
    sizes = read_sizes(decoder)
    alike = _alike(read_layers(decoder, sizes))
    for rows in prompt_matmul.TOKENS:
        yield from _arranged_builds(sizes, alike, rows)


def whole_pass_builds(decoder: nn.Module) -> Iterator[Build]:
    """The additional kernels of a pass without a causal mask for a chunk of actions."""
    sizes = read_sizes(decoder)
    alike, tokens = _alike(read_layers(decoder, sizes)), kernels.Tokens(1, WHOLE, is_causal=False)
    for order in _orders(sizes, alike, WHOLE):
        yield partial(kernels.attend, sizes, tokens, WHOLE, order)
    yield from _layer_products(sizes, alike, CHUNK)


def _alike(layers: Iterable[DecoderLayer]) -> list[DecoderLayer]:
    """One of the ``layers`` of each combination of formats."""
    return list({layer.formats: layer for layer in layers}.values())


def _multiply(
    sizes: DecoderSizes,
    projection: Projection,
    rows: int,
    width: int,
    gates: Projection | None = None,
) -> Build:
    """A product; a gated one, if it ``gates`` the input of another."""
    form, is_gated = projection.format, gates is not None
    order = prompt_matmul.find_order(sizes, form, rows)
    if order is None:
        arguments = projection.rows, rows, width, is_gated
        return partial(matmul_kernels.multiply, sizes.dtype, form, *arguments)
    next_order = gates and prompt_matmul.find_order(sizes, gates.format, rows)
    part = prompt_matmul.part_dtype(sizes.dtype)
    arguments = projection.rows, order, rows, width, next_order, is_gated, part
    return partial(prompt_matmul.multiply, sizes.dtype, form, *arguments)


def _layer_products(
    sizes: DecoderSizes, layers: Iterable[DecoderLayer], rows: int
) -> Iterator[Build]:
    for layer in layers:
        qkv, output, gate_up, down = layer.projections
        yield _multiply(sizes, qkv, rows, sizes.hidden)
        yield _multiply(sizes, output, rows, sizes.attended)
        yield _multiply(sizes, gate_up, rows, sizes.hidden, gates=down)
        yield _multiply(sizes, down, rows, sizes.intermediate)
        order = prompt_matmul.find_order(sizes, qkv.format, rows)
        if order is not None:
            yield partial(arrange, sizes.dtype, order, rows, sizes.hidden)


def _arranged_builds(
    sizes: DecoderSizes, layers: Iterable[DecoderLayer], rows: int
) -> Iterator[Build]:
    """The kernels of ``rows`` rows in the layers' orders, if they have such orders."""
    orders = _orders(sizes, layers, rows)
    if len(orders) > 1:
        yield from _layer_products(sizes, layers, rows)
        for order in orders:
            yield partial(kernels.attend, sizes, kernels.Tokens(1, rows), CAPACITY, order)
        yield from _add_norms(sizes, rows, orders)


def _orders(sizes: DecoderSizes, layers: Iterable[DecoderLayer], rows: int) -> list[Order | None]:
    """Orders in which the layers' products read ``rows`` rows, and None for the last layer's."""
    forms = {form for layer in layers for form in layer.formats}
    return list({None, *(prompt_matmul.find_order(sizes, form, rows) for form in forms)})


def _products(sizes: DecoderSizes) -> list[tuple[mx.Dtype, int]]:
    """Dtypes and numbers of parts of products: MLX's, and ours."""
    return [(sizes.dtype, 0), (mx.float32, 1)]


def _unpacks(sizes: DecoderSizes, layers: Iterable[DecoderLayer]) -> Iterator[Build]:
    widths = sizes.hidden, sizes.attended, sizes.hidden, sizes.intermediate
    for layer in layers:
        for projection, width in zip(layer.projections, widths):
            form = projection.format
            if form.bits < 16 and prompt_matmul.find_order(sizes, form, PROMPT) is None:
                arguments = sizes.dtype, form, projection.rows, width
                yield partial(matmul_kernels.unpack_weights, *arguments)


def _add_norms(
    sizes: DecoderSizes, rows: int, orders: Sequence[Order | None] = (None,)
) -> Iterator[Build]:
    for product in _products(sizes):
        arguments = sizes.dtype, rows, sizes.hidden, sizes.eps, *product
        for order in orders:
            if sizes.group is None or peers.of(sizes.group) is None:
                yield partial(kernels.add_norm, *arguments, order)
            else:
                yield partial(exchange.exchange_norm, *arguments, sizes.group, order)
