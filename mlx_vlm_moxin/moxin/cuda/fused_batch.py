"""One decoding step of a few sequences: many layers in one launch.

As for a single sequence (``fused_step``), reading the weights is the limit. Separate kernels for
each product reach 40 to 95 % of it, since each has to start and to end, and 250 launches take the
host as long as the kernels run. More sequences use ``layerwise``.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...cache import BatchKVCache, KVCache
from . import device, fused_layers, kernel, kv_cache, layerwise_graph, turns
from .cache_checks import are_alike, caches_fit
from .decoder_layers import DecoderLayer, read_layers
from .decoder_sizes import DecoderSizes
from .embeddings import embed
from .errors import UnsupportedError, require
from .graph import step_graphs
from .projections import Format

# Sequences, at most: the columns of a product of tensor cores.
MAX_BATCH = 8
# Cached positions up to which this is faster than a kernel for each step of a layer, by bits of the
# weights. Attention is slower here (docs/speed.md).
MAX_POSITIONS = {16: 1024, 8: 2048, 4: 2048}
# Graphs that are kept: batches of each size with caches of several capacities.
GRAPHS = 4 * MAX_BATCH
# A warp multiplies TILE rows of weights at a time, in steps of STEP columns, of which at least
# MIN_BYTES_AHEAD in a thread block are in flight.
STEP = 128
TILE = 16
MIN_BYTES_AHEAD = 64 * 1024
GROUP_SIZES = (32, 64)


class Tiling(NamedTuple):
    """How a thread block divides its work.

    Attributes:
        warps: of a thread block.
        heads: largest number of heads with the same keys that are computed together.
        steps: largest number of steps whose inputs fit into a warp's registers.
    """

    warps: int
    heads: int
    steps: int


# The fastest ones, as measured on an H200.
PLAIN, PACKED = Tiling(8, 2, 6), Tiling(16, 1, 3)


def find_tiling(form: Format) -> Tiling:
    """The tiling for weights of this format."""
    return PLAIN if form.bits == 16 else PACKED


class FusedBatch:
    """The step of one token of each sequence, compiled into one graph.

    Args:
        decoder: a ``MistralModel``.
        head: the output head.
    """

    def __init__(self, decoder: nn.Module, head: nn.Module):
        self._most = functools.lru_cache(maxsize=1)(functools.partial(_most_positions, decoder))
        self._graph = step_graphs(_step, decoder, head, GRAPHS)

    def supports(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: Sequence[Any] | None,
        sizes: DecoderSizes,
    ) -> bool:
        """Whether ``inputs`` ``[B, 1]`` are few and follow others in plain or a batch's caches."""
        return (
            inputs.shape[1] == 1
            and inputs.shape[0] <= MAX_BATCH
            and inputs_embeds is None
            and caches_fit(cache, (KVCache, BatchKVCache), inputs, None, sizes)
            and cache[0].keys is not None
            and cache[0].size() < self._most(sizes)
        )

    def __call__(
        self,
        inputs: mx.array,
        inputs_embeds: None,
        cache: Sequence[KVCache | BatchKVCache],
        logits_to_keep: int,
        sizes: DecoderSizes,
    ) -> mx.array:
        """Logits ``[B, 1, vocab_size]`` after the tokens ``inputs`` ``[B, 1]``; fills ``cache``.

        Raises:
            UnsupportedError: if the kernels do not compute the decoder; ``cache`` is as before.
        """
        places = kv_cache.places(cache, len(inputs))
        arrays = kv_cache.reserve(cache)
        step = self._graph(sizes, arrays[0].shape)
        with turns.turn() as launched:
            logits, arrays = step(inputs, places, arrays)
            mx.async_eval(logits, arrays)  # as in fused_step
            launched(logits)
        kv_cache.append(cache, arrays, 1)
        return logits


def most_positions(sizes: DecoderSizes, layers: Sequence[DecoderLayer]) -> int:
    """Cached positions up to which ``layers`` are computed in this way; 0 if there is no kernel."""
    found = {layer.formats for layer in layers}
    try:
        for formats in found:
            check(sizes, formats)
    except UnsupportedError:
        return 0
    return min(MAX_POSITIONS[formats[0].bits] for formats in found)


def _most_positions(decoder: nn.Module, sizes: DecoderSizes) -> int:
    try:
        return most_positions(sizes, read_layers(decoder, sizes))
    except UnsupportedError:
        return 0


def check(sizes: DecoderSizes, formats: fused_layers.Formats) -> None:
    """Raise UnsupportedError if there is no kernel for layers of these sizes and formats."""
    form, tiling = formats[0], find_tiling(formats[0])
    require(sizes.group is None, "the decoder is sharded")
    require(all(other == form for other in formats), "matrices of a layer are packed apart")
    require(form.bits == 16 or form.group_size in GROUP_SIZES, "groups of another size")
    widths = sizes.hidden, sizes.attended, sizes.intermediate
    require(all(width % STEP == 0 for width in widths), f"a width is no multiple of {STEP}")
    require(sizes.keys % TILE == 0, f"the keys' width is no multiple of {TILE}")
    most = tiling.steps * tiling.warps * STEP
    require(max(sizes.hidden, sizes.attended) <= most, "inputs do not fit into registers")
    ahead = slots(sizes, form) * tiling.warps * _step_bytes(form)
    require(ahead >= MIN_BYTES_AHEAD, "the GPU has too little shared memory")


def multiplies_integers(form: Format, dtype: mx.Dtype) -> bool:
    """Whether the tensor cores multiply the integers themselves: their groups are those of a lane's
    steps, and bfloat16 represents them exactly.
    """
    return form == Format(4, 64) and dtype == mx.bfloat16


def heads_at_once(sizes: DecoderSizes, form: Format) -> int:
    """Heads that share keys and are attended to together."""
    return math.gcd(sizes.heads // sizes.kv_heads, find_tiling(form).heads)


def _step_bytes(form: Format) -> int:
    """Of a warp's step: weights and, if they are quantised, scales and biases."""
    groups = STEP // form.group_size if form.bits < 16 else 0
    return TILE * (STEP * form.bits // 8 + 4 * groups)


def _scratch_bytes(sizes: DecoderSizes, form: Format) -> int:
    """Shared memory after the weights: as scratch() in batch_products.cuh."""
    warps, heads, width = find_tiling(form).warps, heads_at_once(sizes, form), sizes.head_dim
    attention = (heads + 2) * width * 2 + heads * warps * 4 * (width + 2)
    return max(2 * warps * TILE * MAX_BATCH * 4, attention)


def slots(sizes: DecoderSizes, form: Format) -> int:
    """Steps of a warp that are in flight."""
    room = device.max_shared_memory() - _scratch_bytes(sizes, form)
    return room // (find_tiling(form).warps * _step_bytes(form))


def _step(
    decoder: nn.Module,
    head: nn.Module,
    sizes: DecoderSizes,
    inputs: mx.array,
    places: kv_cache.Places,
    arrays: list[mx.array],
) -> tuple[mx.array, list[mx.array]]:
    """Logits, and ``arrays`` (keys and values of each layer) after the kernels wrote into them."""
    require(are_alike(arrays, len(inputs), sizes), "caches of other shapes or dtypes")
    layers = read_layers(decoder, sizes)
    x = embed(decoder.embed_tokens, inputs).flatten(0, 1)
    for group in fused_layers.groups(layers):
        caches = arrays[2 * group.start : 2 * group.stop]
        some = layers[group]
        fused = batch_kernel(sizes, some[0].formats, len(some), len(inputs), arrays[0].shape[2])
        x = fused_layers.launch(fused, some, x, places[0], caches, places[1])
    logits = layerwise_graph.logits(head, decoder.norm(x[:, None]))
    return logits, kv_cache.after(arrays, x)


@functools.lru_cache
def batch_kernel(
    sizes: DecoderSizes, formats: fused_layers.Formats, count: int, batch: int, capacity: int
) -> kernel.Kernel:
    """The kernel of ``count`` layers for one token of each sequence.

    Args:
        sizes: of the decoder.
        formats: of the four projections of every layer.
        batch: number of sequences.
        capacity: positions of the cached arrays.

    Returns:
        A kernel for ``fused_layers.launch``; its first result is the hidden states
        ``[batch, hidden]``.

    Raises:
        UnsupportedError: if there is no such kernel.
    """
    check(sizes, formats)
    form, dtype = formats[0], sizes.dtype
    tiling, depth = find_tiling(form), slots(sizes, form)
    return fused_layers.build(
        "fused_batch",
        sizes,
        formats,
        count,
        {
            "STEP": STEP,
            "SLOTS": depth,
            "INTEGERS": multiplies_integers(form, dtype),
            "HEADS_AT_ONCE": heads_at_once(sizes, form),
        },
        {
            "out": ((batch, sizes.hidden), dtype),
            "products": ((batch, sizes.attended + 2 * sizes.keys), mx.float32),
            "attended": ((batch, sizes.attended), dtype),
            "gated": ((batch, sizes.intermediate), dtype),
        },
        {"batch": batch, "capacity": capacity},
        blocks=device.multiprocessors(),
        threads=32 * tiling.warps,
        shared_memory=tiling.warps * depth * _step_bytes(form) + _scratch_bytes(sizes, form),
        further=[mx.int32],
    )
