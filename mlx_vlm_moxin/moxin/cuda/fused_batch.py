"""One decoding step of a few sequences: many layers in one launch.

As for a single sequence (``fused_step``), reading the weights is the limit. Separate kernels for
each product reach 40 to 95 % of it, since each has to start and to end, and 250 launches take the
host as long as the kernels run. More sequences use ``layerwise``.

A sharded decoder is computed in the same way, if the GPUs can write into each other's memory.
"""

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...cache import BatchKVCache, KVCache
from . import batch_tiling, device, fused_layers, kernel, kv_cache, layerwise_graph, peers, turns
from .batch_tiling import MAX_BATCH, STEP, TILE
from .cache_checks import are_alike, caches_fit
from .decoder_layers import read_layers
from .decoder_sizes import DecoderSizes
from .embeddings import embed
from .errors import UnsupportedError, require
from .layer_form import DecoderLayer, LayerForm
from .projections import Format
from .step_graphs import StepGraphs

# Cached positions up to which this is faster than a kernel for each step of a layer, by bits of the
# weights. Attention is slower here (docs/speed.md).
MAX_POSITIONS = {16: 2048, 8: 4096, 4: 4096}
# Graphs that are kept: batches of each size with caches of several capacities.
GRAPHS = 4 * MAX_BATCH
GROUP_SIZES = (32, 64)


class FusedBatch:
    """The step of one token of each sequence, compiled into one graph.

    Args:
        decoder: a ``MistralModel``.
        head: the output head.
    """

    def __init__(self, decoder: nn.Module, head: nn.Module):
        self._most = functools.lru_cache(maxsize=1)(functools.partial(_most_positions, decoder))
        self._graph = StepGraphs(_step, decoder, head, GRAPHS)

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
    form, tiling = formats[0], batch_tiling.find_tiling(sizes, formats[0])
    part_bytes = MAX_BATCH * sizes.hidden * sizes.dtype.size
    require(peers.can_add_up(sizes.group, part_bytes), "GPUs cannot add up")
    require(all(other == form for other in formats), "matrices of a layer are packed apart")
    require(form.bits == 16 or form.group_size in GROUP_SIZES, "groups of another size")
    widths = sizes.hidden, sizes.attended, sizes.intermediate
    require(all(width % STEP == 0 for width in widths), f"a width is no multiple of {STEP}")
    require(sizes.keys % TILE == 0, f"the keys' width is no multiple of {TILE}")
    most = tiling.steps * tiling.warps * STEP
    require(max(sizes.hidden, sizes.attended) <= most, "inputs do not fit into registers")
    require(batch_tiling.has_memory(sizes, form, tiling), "the GPU has too little shared memory")


def multiplies_integers(form: Format, dtype: mx.Dtype) -> bool:
    """Whether the tensor cores multiply the integers themselves (batch_multiply.cuh): a lane has as
    many scales in a step as this takes, and inputs that may need another power of two as float16.
    """
    return form.bits < 16 and form.group_size == 64 and dtype == mx.bfloat16


def _step(
    decoder: nn.Module,
    head: nn.Module,
    sizes: DecoderSizes,
    inputs: mx.array,
    places: kv_cache.Places,
    arrays: list[mx.array],
    joined: Sequence[DecoderLayer] | None,
) -> tuple[mx.array, list[mx.array]]:
    """Logits, and ``arrays`` (keys and values of each layer) after the kernels wrote into them.

    Args:
        joined: the layers, if each is one array.
    """
    require(are_alike(arrays, len(inputs), sizes), "caches of other shapes or dtypes")
    layers = joined or read_layers(decoder, sizes)
    x = embed(decoder.embed_tokens, inputs).flatten(0, 1)

    def find(form: LayerForm, count: int) -> kernel.Kernel:
        capacity = arrays[0].shape[2]
        return batch_kernel(sizes, form.formats, count, len(inputs), capacity, form.is_joined)

    filled, padding = places
    addresses = [] if sizes.group is None else [peers.of(sizes.group).addresses]
    x = fused_layers.run(layers, x, filled, arrays, find, padding, *addresses)
    logits = layerwise_graph.logits(head, decoder.norm(x[:, None]))
    return logits, kv_cache.after(arrays, x)


@functools.lru_cache
def batch_kernel(
    sizes: DecoderSizes,
    formats: fused_layers.Formats,
    count: int,
    batch: int,
    capacity: int,
    is_joined: bool = False,
) -> kernel.Kernel:
    """The kernel of ``count`` layers for one token of each sequence.

    Args:
        sizes: of the decoder.
        formats: of the four projections of every layer.
        batch: number of sequences.
        capacity: positions of the cached arrays.
        is_joined: whether a layer is one array (``joined_form``).

    Returns:
        A kernel for ``fused_layers.launch``; its first result is the hidden states
        ``[batch, hidden]``. For a sharded decoder ``Peers.addresses`` is one further input.

    Raises:
        UnsupportedError: if there is no such kernel.
    """
    check(sizes, formats)
    form, dtype = formats[0], sizes.dtype
    tiling = batch_tiling.find_tiling(sizes, form)
    others = None if sizes.group is None else peers.of(sizes.group)
    return fused_layers.build(
        "fused_batch" if others is None else "sharded_batch",
        sizes,
        formats,
        count,
        {
            "STEP": STEP,
            "SLOTS": batch_tiling.slots(sizes, form, tiling),
            "INTEGERS": multiplies_integers(form, dtype),
            "STEPS_OF_SLOT": tiling.together,
            "TILES_SUMMED": tiling.summed,
            "HEADS_AT_ONCE": tiling.heads,
            "KEY_BATCHES": tiling.keys,
            **(others.constants if others else {}),
        },
        {
            "out": ((batch, sizes.hidden), dtype),
            "scratch": kernel.scratch(
                (MAX_BATCH * (sizes.attended + 2 * sizes.keys), mx.float32),  # products
                (MAX_BATCH * sizes.attended, dtype),  # attended
                (MAX_BATCH * sizes.intermediate, dtype),  # gated
            ),
        },
        {"batch": batch, "capacity": capacity, **(others.scalars if others else {})},
        blocks=device.multiprocessors(),
        threads=32 * tiling.warps,
        shared_memory=batch_tiling.shared_memory(sizes, form, tiling),
        further=[mx.int32, *([mx.uint32] if others else [])],
        is_joined=is_joined,
    )
