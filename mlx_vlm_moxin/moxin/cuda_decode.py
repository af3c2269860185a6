"""One decoding step of a single row on NVIDIA GPUs, in kernels of our own.

Such a step reads every weight once and computes little. MLX takes some 13 kernels a layer for
it, which its host code cannot launch as fast as they run, and its packed product reads at half
of the memory's speed. Here a layer is five kernels. Prompts and batches are in ``cuda_rows``;
everything else (training, other formats, other devices) goes through the modules themselves.
"""

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache import KVCache
from . import cuda_kernels
from .cuda_decoder import Block, LastGraph, Part, count_array, require_blocks

THREADS = 256
WARPS = THREADS // 32
ATTENTION_THREADS = 512
# Pairs of rows that a warp computes, of q_proj, k_proj, v_proj and of gate_proj and up_proj.
QKV_PAIRS = 1
GATE_UP_PAIRS = 4
# Keys that a block of the attention kernel goes through before a head is split over several.
KEYS_PER_SPLIT = 512
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
        keys, values = [layer.keys for layer in cache], [layer.values for layer in cache]
        step = self._graph(keys[0].shape)
        logits, keys, values = step(inputs, count_array(cache[0].offset), keys, values)
        for layer, key, value in zip(cache, keys, values):
            layer.update_and_fetch(key, value)
        return logits

    def _forward(
        self, inputs: mx.array, position: mx.array, keys: list[mx.array], values: list[mx.array]
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        model, blocks = self.model.model, require_blocks(self.model)
        x = model.embed_tokens(inputs).reshape(-1)
        new_keys, new_values = [], []
        for block, layer_keys, layer_values in zip(blocks, keys, values):
            queries, key, value = self._qkv(block, x, position)
            attended = self._attend(queries, layer_keys, layer_values, key, value, position)
            x = self._project(block.output, attended, x)
            x = self._project(block.down, self._gate_up(block, x), x)
            new_keys.append(key)
            new_values.append(value)
        logits = self.model.lm_head(model.norm(x.reshape(1, 1, -1)))
        return logits, new_keys, new_values

    def _qkv(self, block: Block, x: mx.array, position: mx.array) -> list[mx.array]:
        config, packing = self.model.config, block.qkv.packing
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        width = config.head_dim
        numbers = [f"{config.rms_norm_eps}f", f"{math.log2(config.rope_theta)}f"]
        return cuda_kernels.run(
            f"qkv<{packing.template}, {config.hidden_size}, {width}, {heads}, {kv_heads}, "
            f"{THREADS}, {QKV_PAIRS}>",
            ["x", "norm", *packing.matrices, "position", *numbers, "queries", "keys", "values"],
            {"x": x, "norm": block.input_norm, **block.qkv.inputs, "position": position},
            {
                "queries": ((heads * width,), x.dtype),
                "keys": ((1, kv_heads, 1, width), x.dtype),
                "values": ((1, kv_heads, 1, width), x.dtype),
            },
            file="decode.cu",
            dtype=x.dtype,
            blocks=math.ceil((heads + 2 * kv_heads) * width / (2 * WARPS * QKV_PAIRS)),
            threads=THREADS,
        )

    def _attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        key: mx.array,
        value: mx.array,
        position: mx.array,
    ) -> mx.array:
        config, dtype = self.model.config, queries.dtype
        heads, width, capacity = config.num_attention_heads, config.head_dim, keys.shape[2]
        window = config.sliding_window or 0
        splits = math.ceil(min(capacity, window or capacity) / KEYS_PER_SPLIT)
        splits = min(splits, MAX_SPLITS)
        arrays = {"queries": queries, "keys": keys, "values": values}
        arrays |= {"new_key": key, "new_value": value, "position": position}
        template = f"T, {width}, {heads}, {config.num_key_value_heads}, {splits}, {window}"
        result = ((heads * width,), dtype)
        partial = ((heads, splits, width + 2), mx.float32)
        (attended,) = cuda_kernels.run(
            f"attend<{template}, {ATTENTION_THREADS}>",
            [*arrays, str(capacity), f"{width**-0.5}f", "out"],
            arrays,
            {"out": result if splits == 1 else partial},
            file="attention.cu",
            dtype=dtype,
            blocks=heads * splits,
            threads=ATTENTION_THREADS,
        )
        if splits > 1:
            (attended,) = cuda_kernels.run(
                f"merge<T, {width}, {splits}>",
                ["partial", "out"],
                {"partial": attended},
                {"out": result},
                file="attention.cu",
                dtype=dtype,
                blocks=heads,
                threads=width,
            )
        return attended

    def _project(self, part: Part, x: mx.array, residual: mx.array) -> mx.array:
        return cuda_kernels.run(
            f"project<{part.packing.template}, {x.size}, {residual.size}, {THREADS}>",
            ["x", *part.packing.matrices, "residual", "out"],
            {"x": x, **part.inputs, "residual": residual},
            {"out": (residual.shape, x.dtype)},
            file="decode.cu",
            dtype=x.dtype,
            blocks=math.ceil(residual.size / WARPS),
            threads=THREADS,
        )[0]

    def _gate_up(self, block: Block, x: mx.array) -> mx.array:
        config, packing = self.model.config, block.gate_up.packing
        rows, sizes = config.intermediate_size, f"{config.hidden_size}, {config.intermediate_size}"
        return cuda_kernels.run(
            f"gate_up<{packing.template}, {sizes}, {THREADS}, {GATE_UP_PAIRS}>",
            ["x", "norm", *packing.matrices, f"{config.rms_norm_eps}f", "out"],
            {"x": x, "norm": block.post_norm, **block.gate_up.inputs},
            {"out": ((rows,), x.dtype)},
            file="decode.cu",
            dtype=x.dtype,
            blocks=math.ceil(rows / (WARPS * GATE_UP_PAIRS)),
            threads=THREADS,
        )[0]
