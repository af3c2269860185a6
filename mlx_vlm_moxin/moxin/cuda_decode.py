"""One decoding step of a single row on NVIDIA GPUs, in a kernel of our own.

Such a step reads every weight once and computes little. MLX takes some 13 kernels a layer for
it, which its host code cannot launch as fast as they run, and its packed product reads at half
of the memory's speed. Here one launch does many layers. Prompts and batches are in
``cuda_rows``; everything else (training, other formats, other devices) goes through the modules.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache import KVCache
from . import cuda_cache, cuda_kernels
from .config import TextConfig
from .cuda_decoder import (
    MIN_SIZE,
    Block,
    LastGraph,
    Packing,
    Part,
    array_names,
    count_array,
    require_blocks,
)

THREADS = 512
# A kernel takes 4 KB of arguments, and a layer has up to 23 arrays.
LAYERS_AT_ONCE = 18
# Of a head's keys.
MAX_SPLITS = 8


class DecodeStep:
    """A ``LanguageModel``'s step of one token of one row, compiled into one graph.

    Args:
        model: of which :func:`cuda_decoder.read_blocks` gives the blocks.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._graph = LastGraph(lambda: mx.compile(self._forward, inputs=model.state))

    def takes(self, inputs: mx.array, cache: Sequence[Any] | None) -> bool:
        """Whether ``inputs`` is one token of one row that follows others in plain caches."""
        return (
            inputs.shape == (1, 1)
            and cache is not None
            and all(type(layer) is KVCache for layer in cache)
            and cache[0].offset > 0
            and cache[0].keys.shape[0] == 1
            and cache[0].keys.dtype == self.model.model.norm.weight.dtype
        )

    def __call__(self, inputs: mx.array, cache: Sequence[KVCache]) -> mx.array:
        """Logits ``[1, 1, vocab_size]`` after the token ``inputs`` ``[1, 1]``; fills ``cache``.

        Raises:
            ValueError: if no kernel takes the model any more.
        """
        stacked = cuda_cache.take(cache)
        step = self._graph(stacked.shape)
        logits, stacked, views = step(inputs, count_array(cache[0].offset), stacked)
        # MLX does not know that the kernels write into the cache: it orders what it hands to the
        # GPU at different times, and might not what it hands over together.
        mx.async_eval(logits, stacked)
        cuda_cache.put(cache, stacked, views, 1)
        return logits

    def _forward(
        self, inputs: mx.array, position: mx.array, stacked: mx.array
    ) -> tuple[mx.array, mx.array, list[mx.array]]:
        model, blocks = self.model.model, require_blocks(self.model)
        x = model.embed_tokens(inputs).reshape(-1)
        for taken in _groups(blocks):
            x = self._layers(blocks[taken], taken.start, x, position, stacked)
        logits = self.model.lm_head(model.norm(x.reshape(1, 1, -1)))
        # Whoever reads the cache waits for the kernels that wrote into it.
        (stacked,) = mx.depends([stacked], [x])
        return logits, stacked, cuda_cache.views_of(stacked, len(blocks))

    def _layers(
        self,
        blocks: Sequence[Block],
        first: int,
        x: mx.array,
        position: mx.array,
        stacked: mx.array,
    ) -> mx.array:
        """``x`` ``[hidden_size]`` behind ``blocks``, of which ``first`` is the first one's number.

        Their keys and values go into ``stacked``, what :func:`cuda_cache.take` gives.
        """
        config, dtype = self.model.config, x.dtype
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        width = config.head_dim
        # The kernel counts its blocks here, and leaves a count that the next one may begin with.
        arrivals = mx.zeros(MIN_SIZE, mx.uint32)
        inputs = {"x": x, "position": position, "arrivals": arrivals, "stacked": stacked}

        def names(arrays: Sequence[mx.array]) -> list[str]:
            own = [f"in_{len(inputs) + index}" for index in range(len(arrays))]
            inputs.update(zip(own, arrays))
            return own

        def matrices(part: Part) -> list[str]:
            own, count = names(part.arrays), len(array_names(part.packing.bits))
            return [f"{{{', '.join(own[i : i + count])}}}" for i in range(0, len(own), count)]

        layers = []
        for index, block in enumerate(blocks):
            members = [*names([block.input_norm]), *matrices(block.qkv), *matrices(block.output)]
            members += [*names([block.post_norm]), *matrices(block.gate_up), *matrices(block.down)]
            # By a thread for each layer.
            layer = f"own[{index}] = {{{', '.join(members)}}};"
            layers.append(f"if (threadIdx.x == {16 * index}) {layer}")
        splits = max(1, min(cuda_kernels.multiprocessors() // heads, MAX_SPLITS))
        outputs = {
            "out": (x.shape, dtype),
            "queries": ((heads * width,), dtype),
            "sums": ((heads * splits * (width + 2),), mx.float32),
            "gated": ((config.intermediate_size,), dtype),
        }
        packings = [part.packing for part in blocks[0].parts]
        sizes = (config.hidden_size, config.intermediate_size, width, heads, kv_heads)
        sizes = ", ".join(map(str, (*sizes, config.sliding_window or 0)))
        formats = ", ".join(f"moxin::Packing<{p.bits}, {p.group_size}>" for p in packings)
        numbers = f"{config.rms_norm_eps}f, {math.log2(config.rope_theta)}f, {width**-0.5}f"
        out, *_ = cuda_kernels.run(
            f"decode<T, moxin::Sizes<{sizes}>, {formats}, {len(layers)}, {splits}, {THREADS}>",
            [
                f"[&](moxin::Layer<T>* own) {{ {' '.join(layers)} }}",
                *("x", "position", "const_cast<unsigned int*>(arrivals)"),
                *("const_cast<T*>(stacked)", "first", f"moxin::Numbers{{capacity, {numbers}}}"),
                *outputs,
            ],
            inputs,
            outputs,
            file="decode.cu",
            dtype=dtype,
            blocks=cuda_kernels.multiprocessors(),
            threads=THREADS,
            scalars={"first": first, "capacity": stacked.shape[2]},
            shared_memory=_shared_memory(config, packings),
        )
        return out


def _groups(blocks: Sequence[Block]) -> Iterator[slice]:
    """Layers that one launch takes: as many as fit of those that are packed alike."""

    def packings(index: int) -> list[Packing]:
        return [part.packing for part in blocks[index].parts]

    for _, alike in itertools.groupby(range(len(blocks)), packings):
        first, *_, last = 2 * list(alike)
        for start in range(first, last + 1, LAYERS_AT_ONCE):
            yield slice(start, min(start + LAYERS_AT_ONCE, last + 1))


def _shared_memory(config: TextConfig, packings: Sequence[Packing]) -> int:
    """Bytes that a step of the kernel needs at most, as in kernels/matvec.cu and attention.cu."""
    attended = config.num_attention_heads * config.head_dim
    widths = (config.hidden_size, attended, config.hidden_size, config.intermediate_size)
    inputs = [
        2 * width + (width * packing.bits // 32 if packing.bits < 16 else 16)
        for width, packing in zip(widths, packings)
    ]
    return max(*inputs, THREADS // 32 * 4 * (config.head_dim + 2))
