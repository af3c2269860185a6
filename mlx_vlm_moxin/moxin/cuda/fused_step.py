"""One decoding step of a single sequence: many layers in one launch.

Such a step reads every weight once and computes little. MLX needs some 13 kernels per layer, which
its host code launches slower than they run, and its quantised product reads at half of the
memory's speed. Prompts and batches use ``fused_prompt`` and ``layerwise``.

A sharded decoder is computed in the same way, if the GPUs can write into each other's memory.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...cache import BatchKVCache, KVCache
from . import device, fused_layers, kernel, kv_cache, layerwise_graph, peers, turns
from .cache_checks import are_alike, caches_fit
from .decoder_layers import read_layers
from .decoder_sizes import DecoderSizes
from .embeddings import embed
from .errors import require
from .layer_form import DecoderLayer, LayerForm
from .projections import Format
from .step_graphs import StepGraphs

THREADS = 512
# Thread blocks that share a head's keys, at most.
MAX_SPLITS = 8
# Caches of at most so many positions have fewer thread blocks in attention, because each block of
# the next step reads the results of all of them.
SHORT_CACHE = 512
SHORT_BLOCKS = 96
# Shared memory at most of the table of layers and of sums.
STATIC_BYTES = 5120


class Stream(NamedTuple):
    """How a warp streams packed weights through shared memory (packed_stream.cuh).

    Attributes:
        slots: for pieces of two rows, at most.
        slot_bytes: bytes of a slot.
        of_product: pieces in flight of the product that is computed, at most.
        of_next: pieces in flight of the products after it, at most.
    """

    slots: int
    slot_bytes: int
    of_product: int
    of_next: int


# The fastest ones for Moxin, as measured on an H200.
STREAMS = {Format(8, 64): Stream(2, 4352, 2, 1), Format(4, 64): Stream(5, 2304, 2, 2)}
NO_STREAM = Stream(0, 0, 0, 0)
LEAST_SLOTS = 2
# Graphs that are kept, one for each capacity of the caches.
GRAPHS = 8


class FusedStep:
    """The step of one token, compiled into one graph.

    Args:
        decoder: a ``MistralModel``.
        head: the output head.
    """

    def __init__(self, decoder: nn.Module, head: nn.Module):
        self._graph = StepGraphs(_step, decoder, head, GRAPHS)

    def supports(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: Sequence[Any] | None,
        sizes: DecoderSizes,
    ) -> bool:
        """Whether ``inputs`` is one token of one sequence that follows others.

        The caches are plain, or a batch's: mlx-vlm's server and its batches of one have those.
        """
        return (
            inputs.shape == (1, 1)
            and inputs_embeds is None
            and can_add_up(sizes)
            and caches_fit(cache, (KVCache, BatchKVCache), inputs, None, sizes)
            and cache[0].size() > 0
        )

    def __call__(
        self, inputs: mx.array, cache: Sequence[kv_cache.Cache], sizes: DecoderSizes
    ) -> mx.array:
        """Logits ``[1, 1, vocab_size]`` after the token ``inputs`` ``[1, 1]``; fills ``cache``.

        Raises:
            UnsupportedError: if the kernels do not compute the decoder; ``cache`` is as before.
        """
        arrays = kv_cache.reserve(cache)
        step = self._graph(sizes, arrays[0].shape[2])
        with turns.turn() as launched:
            logits, arrays = step(inputs, kv_cache.places(cache, 1), arrays)
            # MLX does not know that the kernels write into the cache. It keeps the order of what is
            # submitted at different times, but perhaps not of what is submitted together.
            mx.async_eval(logits, arrays)
            launched(logits)
        kv_cache.append(cache, arrays, 1)
        return logits


def can_add_up(sizes: DecoderSizes) -> bool:
    """Whether the kernel adds up the parts of all processes itself, if there are several."""
    return peers.can_add_up(sizes.group, sizes.hidden * mx.float32.size)


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
    require(are_alike(arrays, 1, sizes), "caches of other shapes or dtypes")
    layers = joined or read_layers(decoder, sizes)
    x = embed(decoder.embed_tokens, inputs).reshape(-1)
    position, padding = places
    addresses = [] if sizes.group is None else [peers.of(sizes.group).addresses]

    def find(form: LayerForm, count: int) -> kernel.Kernel:
        capacity = arrays[0].shape[2]
        return step_kernel(sizes, form.formats, count, capacity, form.is_joined)

    x = fused_layers.run(layers, x, position, arrays, find, padding, *addresses)
    logits = layerwise_graph.logits(head, decoder.norm(x.reshape(1, 1, -1)))
    return logits, kv_cache.after(arrays, x)


@functools.lru_cache
def step_kernel(
    sizes: DecoderSizes,
    formats: fused_layers.Formats,
    count: int,
    capacity: int,
    is_joined: bool = False,
) -> kernel.Kernel:
    """The kernel of ``count`` layers for one token.

    Args:
        sizes: of the decoder.
        formats: of the four projections of every layer.
        capacity: positions of the cached arrays.
        is_joined: whether a layer is one array (``joined_form``).

    Returns:
        A kernel for ``fused_layers.launch``; its first result is the hidden state ``[hidden]``. For
        a sharded decoder ``Peers.addresses`` is one further input.

    Raises:
        UnsupportedError: if the GPU has too little shared memory.
    """
    dtype = sizes.dtype
    blocks = device.multiprocessors()
    attending = min(blocks, SHORT_BLOCKS) if capacity <= SHORT_CACHE else blocks
    splits = max(1, min(attending // sizes.heads, MAX_SPLITS))
    staged, stream = staged_bytes(sizes, formats), find_stream(sizes, formats)
    memory = staged + THREADS // 32 * stream.slots * stream.slot_bytes
    require(memory <= device.max_shared_memory(), "a decoding step needs more shared memory")
    others = None if sizes.group is None else peers.of(sizes.group)
    return fused_layers.build(
        "fused_step" if others is None else "sharded_step",
        sizes,
        formats,
        count,
        {
            "SPLITS": splits,
            "STAGED": staged,
            "SLOTS": stream.slots,
            "IN_FLIGHT": stream.of_product,
            "NEXT_IN_FLIGHT": stream.of_next,
            **(others.constants if others else {}),
        },
        {
            "out": ((sizes.hidden,), dtype),
            "scratch": kernel.scratch(
                (sizes.attended, dtype),  # queries
                (sizes.heads * splits * (sizes.head_dim + 2), mx.float32),  # sums
                (sizes.intermediate, dtype),  # gated
            ),
        },
        {"capacity": capacity, **(others.scalars if others else {})},
        blocks=blocks,
        threads=THREADS,
        shared_memory=memory,
        further=[mx.int32, *([mx.uint32] if others else [])],
        is_joined=is_joined,
    )


def staged_bytes(sizes: DecoderSizes, formats: fused_layers.Formats) -> int:
    """Bytes per thread block: the larger of StagedInput (matvec.cuh) and WarpSoftmaxes
    (decode_attention.cuh).
    """
    widths = (sizes.hidden, sizes.attended, sizes.hidden, sizes.intermediate)
    staged = [
        # A sum for each unit of 16 bytes, or for 16 weights (packed_stream.cuh).
        2 * width + (width // 4 if form.bits < 16 else 16)
        for width, form in zip(widths, formats)
    ]
    return -(-max(*staged, THREADS // 32 * 4 * (sizes.head_dim + 2)) // 128) * 128


def find_stream(sizes: DecoderSizes, formats: fused_layers.Formats) -> Stream:
    """How packed weights are streamed (packed_stream.cuh).

    ``NO_STREAM`` if each product loads its weights itself (matvec.cuh).
    """
    stream, widths = STREAMS.get(formats[0]), (sizes.hidden, sizes.attended, sizes.intermediate)
    if (
        stream is None
        or any(other != formats[0] for other in formats)
        or sizes.dtype != mx.bfloat16
        or any(width % 256 for width in widths)
    ):
        return NO_STREAM
    room = device.max_shared_memory() - STATIC_BYTES - staged_bytes(sizes, formats)
    slots = min(room // (THREADS // 32 * stream.slot_bytes), stream.slots)
    return stream._replace(slots=slots) if slots >= LEAST_SLOTS else NO_STREAM
