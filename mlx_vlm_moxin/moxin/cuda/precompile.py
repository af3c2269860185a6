"""Compiles a model's kernels in threads, while its weights are still being read.

Sizes, dtypes and formats are known as soon as the weights are assigned, before they are read.
Kernels are compiled in the order of their first use: a picture, the towers, a prompt with a
picture, single tokens, further questions, batches.
"""

import atexit
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from . import (
    activations,
    device,
    embeddings,
    exchange,
    fused_batch,
    fused_layers,
    fused_prompt,
    fused_step,
    kv_cache,
    matmul_kernels,
    patch_embedding,
    peers,
    prompt_matmul,
    resize_kernels,
    tiling,
    tower_kernel,
    towers,
)
from . import layerwise_kernels as kernels
from .arranged import Order, arrange
from .decoder_layers import DecoderLayer, read_layers
from .decoder_sizes import DecoderSizes, read_sizes
from .errors import UnsupportedError
from .projections import Projection, read_projection
from .step_attention import step_attention

MAX_THREADS = 16
# Width and height of a picture.
PICTURE = (640, 480)
# Tokens of a picture and a question.
PROMPT = 288
LONG_PROMPT = 384
# Tokens of a further question about a picture.
QUESTION = 24
# Tokens of OpenVLA-OFT's pass with two pictures, and values of its chunk of actions.
WHOLE = 590
CHUNK = 56
# Sequences of a batch.
BATCH = 8
# Positions of the cache.
CAPACITY = 512

Build = Callable[[], object]


_waiting: queue.SimpleQueue[Build] = queue.SimpleQueue()
_threads: list[threading.Thread] = []


def start(model: nn.Module) -> None:
    """Compile the kernels of ``model``, a ``Model`` with weights assigned, in the background."""
    if device.enabled():
        run(list(builds(model)))


def start_decoder(model: nn.Module) -> None:
    """The same for the decoder of ``model``, a ``LanguageModel`` that has been sharded."""
    if device.enabled():
        run(_unless_unsupported(lambda: _decoder_builds(model.model, model.lm_head)))


def run(found: Sequence[Build]) -> None:
    """Run the builds in threads, in their order."""
    for build in found:
        _waiting.put(build)
    for _ in range(min(MAX_THREADS, os.cpu_count() or 1, len(found))):
        _threads.append(threading.Thread(target=_work, daemon=True))
        _threads[-1].start()


def _work() -> None:
    while True:
        try:
            build = _waiting.get_nowait()
        except queue.Empty:
            return
        try:
            build()
        except (UnsupportedError, RuntimeError):
            continue  # reported where the kernel is used


@atexit.register
def stop() -> None:
    """Drop builds that have not begun and wait for the others: none may outlive the process."""
    while True:
        try:
            _waiting.get_nowait()
        except queue.Empty:
            break
    while _threads:
        _threads.pop().join()


def builds(model: nn.Module) -> Iterator[Build]:
    """Functions that build the kernels that ``model`` will use, in the order of their use."""
    vision, language = getattr(model, "vision_tower", None), getattr(model, "language_model", None)
    if vision is not None:
        yield from _unless_unsupported(lambda: _tower_builds(vision))
    if language is not None:
        yield from _unless_unsupported(lambda: _embedding_builds(language.model))
        yield from _unless_unsupported(lambda: _decoder_builds(language.model, language.lm_head))
        actions = getattr(getattr(model, "config", None), "action_config", None)
        if actions is not None and actions.decoding == "parallel" and not actions.causal:
            yield from _unless_unsupported(lambda: _whole_pass_builds(language.model))


def _unless_unsupported(find: Callable[[], Iterator[Build]]) -> list[Build]:
    try:
        return list(find())
    except UnsupportedError:
        return []


def _tower_builds(vision: nn.Module) -> Iterator[Build]:
    if len(vision.towers) != 2:
        return
    yield from _unless_unsupported(lambda: _patch_builds(vision.towers))
    pairs = towers.make_pairs(vision.towers)
    towers.check(pairs)
    size = vision.config.image_size
    yield partial(resize_kernels.resize_width, 0, *PICTURE, size)
    yield partial(resize_kernels.resize_height, 0, size, 3 * len(vision.towers))
    for stage in towers.stages(pairs):
        arguments = towers.kernel_arguments(stage, [(1, 1), (1, 1)])
        yield partial(tower_kernel.tower_layers, *arguments)


def _embedding_builds(decoder: nn.Module) -> Iterator[Build]:
    sizes, table = read_sizes(decoder), decoder.embed_tokens
    yield partial(activations.gelu_kernel, sizes.dtype, sizes.hidden)
    yield partial(embeddings.merge_features, sizes.dtype, PROMPT, sizes.hidden)
    for ids in embeddings.ID_DTYPES if type(table) is nn.Embedding else ():
        arguments = sizes.dtype, ids, PROMPT, *table.weight.shape
        yield partial(embeddings.embed_tokens, *arguments)


def _patch_builds(both: list[nn.Module]) -> Iterator[Build]:
    patch_embedding.check(both)
    patch = both[0].patch_embed.proj.weight.shape[1]
    yield partial(patch_embedding.build, both, mx.float32, (1, patch, patch))


def _decoder_builds(decoder: nn.Module, head: nn.Module) -> Iterator[Build]:
    sizes = read_sizes(decoder)
    layers = read_layers(decoder, sizes)
    alike = _alike(layers)
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
    yield from _layer_products(sizes, alike, 1)  # of the last layer
    yield _multiply(sizes, output, 1, sizes.hidden)
    yield from _caches(sizes, len(layers), None, PROMPT)
    for group in fused_layers.groups(layers) if fused_step.can_add_up(sizes) else ():
        some = layers[group]
        arguments = sizes, some[0].formats, len(some), CAPACITY
        yield partial(fused_step.step_kernel, *arguments)
    yield from _caches(sizes, len(layers), CAPACITY, None)
    for tokens in (QUESTION, *tiling.ROW_TILES) if sizes.group is None else ():
        for window in fused_layers.prompt_windows(len(layers)):
            for group in fused_layers.groups(layers[window]):
                some = layers[window][group]
                arguments = sizes, some[0].formats, len(some), tokens, CAPACITY
                yield partial(fused_prompt.prompt_kernel, *arguments)
    yield from _layer_products(sizes, alike, LONG_PROMPT)
    for rows in prompt_matmul.TOKENS:
        yield from _arranged_builds(sizes, alike, rows)
    if fused_batch.most_positions(sizes, layers):
        for group in fused_layers.groups(layers):
            some = layers[group]
            arguments = sizes, some[0].formats, len(some), BATCH, CAPACITY
            yield partial(fused_batch.batch_kernel, *arguments)
    yield from _layer_products(sizes, alike, BATCH)
    for product in _products(sizes):
        yield partial(step_attention, sizes, BATCH, CAPACITY, *product)
    yield from _add_norms(sizes, BATCH)
    yield _multiply(sizes, output, BATCH, sizes.hidden)
    for rows in tiling.ROW_TILES:
        yield from _layer_products(sizes, alike, rows)
        yield _multiply(sizes, output, rows, sizes.hidden)


def _whole_pass_builds(decoder: nn.Module) -> Iterator[Build]:
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
    arguments = projection.rows, order, rows, width, next_order, is_gated
    return partial(prompt_matmul.multiply, sizes.dtype, form, *arguments)


def _layer_products(
    sizes: DecoderSizes, layers: Iterable[DecoderLayer], rows: int
) -> Iterator[Build]:
    for layer in layers:
        yield _multiply(sizes, layer.qkv, rows, sizes.hidden)
        yield _multiply(sizes, layer.output, rows, sizes.attended)
        yield _multiply(sizes, layer.gate_up, rows, sizes.hidden, gates=layer.down)
        yield _multiply(sizes, layer.down, rows, sizes.intermediate)
        order = prompt_matmul.find_order(sizes, layer.qkv.format, rows)
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
    for _, splits in _products(sizes):
        arguments = sizes.dtype, rows, sizes.hidden, sizes.eps, splits
        if sizes.group is None or peers.of(sizes.group) is None:
            for order in orders:
                yield partial(kernels.add_norm, *arguments, order)
        else:
            yield partial(exchange.exchange_norm, *arguments, sizes.group)


def _caches(sizes: DecoderSizes, layers: int, old: int | None, new: int | None) -> Iterator[Build]:
    shapes = [
        None if length is None else (1, sizes.kv_heads, length, sizes.head_dim)
        for length in (old, new)
    ]
    yield partial(kv_cache.gather_caches, sizes.dtype, 2 * layers, *shapes, CAPACITY)
