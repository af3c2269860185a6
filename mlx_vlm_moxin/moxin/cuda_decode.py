"""One decoding step of a single row on NVIDIA GPUs, in kernels of our own.

Such a step reads every weight once and computes little. MLX takes some 13 kernels a layer for
it, which its host code cannot launch as fast as they run, and its packed product reads at half
of the memory's speed. Here a layer is five kernels. Everything else (prompts, batches,
training, other formats, other devices) goes through the modules themselves.
"""

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache import KVCache
from . import cuda_kernels

DTYPES = (mx.bfloat16, mx.float16)
BITS = (4, 8)
THREADS = 256
WARPS = THREADS // 32
ATTENTION_THREADS = 512
# Pairs of rows that a warp computes, of q_proj, k_proj, v_proj and of gate_proj and up_proj.
QKV_PAIRS = 1
GATE_UP_PAIRS = 4
# Keys that a block of the attention kernel goes through before a head is split over several.
KEYS_PER_SPLIT = 512
MAX_SPLITS = 8
POSITION_SIZE = 4
# Lanes read 16 bytes, of 4 bits each at the least, and eight of them share a key.
WIDTH_MULTIPLE = 64


def _format(layers: Sequence[nn.Module]) -> tuple[int, int] | None:
    """Bits and group size that all ``layers`` have in common, None if no kernel takes them."""
    first = layers[0]
    if isinstance(first, nn.QuantizedLinear):
        common = first.bits, first.group_size
        for layer in layers:
            is_same = isinstance(layer, nn.QuantizedLinear) and "bias" not in layer
            if not is_same or layer.mode != "affine" or (layer.bits, layer.group_size) != common:
                return None
        return common if common[0] in BITS else None
    # Adapters and shards are other classes or have other parameters.
    is_plain = all(isinstance(layer, nn.Linear) and set(layer) == {"weight"} for layer in layers)
    return (16, 0) if is_plain else None


def _parts(layer: nn.Module) -> list[list[nn.Module]]:
    """The linear layers that one kernel takes together."""
    attention, mlp = layer.self_attn, layer.mlp
    return [
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    ]


def supports(model: nn.Module) -> bool:
    """Whether the kernels compute what ``model``, a ``LanguageModel``, computes.

    They do for bfloat16 and float16 on an NVIDIA GPU, with plain matrices and with 8 and 4
    bits in groups; not for adapters, shards and other packings.
    """
    if model.training or not cuda_kernels.is_available():
        return False
    config = model.config
    parts = [part for layer in model.layers for part in _parts(layer)]
    dtype = model.model.norm.weight.dtype
    widths = (config.hidden_size, config.intermediate_size, config.head_dim)
    return (
        dtype in DTYPES
        and all(width % WIDTH_MULTIPLE == 0 for width in widths)
        and all(type(layer.self_attn.rope) is nn.RoPE for layer in model.layers)
        and not config.rope_traditional
        and model.layers[0].self_attn.n_heads == config.num_attention_heads
        and all(_format(part) is not None for part in parts)
        and all(layer.get("scales", layer.weight).dtype == dtype for p in parts for layer in p)
    )


class DecodeStep:
    """A ``LanguageModel``'s step of one token of one row, compiled into one graph.

    Args:
        model: for which :func:`supports` holds, also later when the graph is made.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._capacity = 0

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
        """Logits ``[1, 1, vocab_size]`` after the token ``inputs`` ``[1, 1]``; fills ``cache``."""
        if cache[0].keys.shape[2] != self._capacity:
            # MLX keeps a graph for each shape that it has seen: drop the last one.
            self._capacity = cache[0].keys.shape[2]
            self._compiled = mx.compile(self._forward, inputs=self.model.state)
        # MLX puts arrays of up to 8 bytes into host memory, which a kernel reads in 10 us.
        position = mx.arange(cache[0].offset, cache[0].offset + POSITION_SIZE)
        logits, keys, values = self._compiled(
            inputs,
            position,
            [layer.keys for layer in cache],
            [layer.values for layer in cache],
        )
        for layer, key, value in zip(cache, keys, values):
            layer.update_and_fetch(key, value)
        return logits

    def _forward(
        self, inputs: mx.array, position: mx.array, keys: list[mx.array], values: list[mx.array]
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        model = self.model.model
        x = model.embed_tokens(inputs).reshape(-1)
        new_keys, new_values = [], []
        for layer, layer_keys, layer_values in zip(model.layers, keys, values):
            queries, key, value = self._qkv(layer, x, position)
            attended = self._attend(queries, layer_keys, layer_values, key, value, position)
            x = self._project(layer.self_attn.o_proj, attended, x)
            x = self._project(layer.mlp.down_proj, self._gate_up(layer, x), x)
            new_keys.append(key)
            new_values.append(value)
        logits = self.model.lm_head(model.norm(x.reshape(1, 1, -1)))
        return logits, new_keys, new_values

    def _matrices(self, **layers: nn.Module) -> tuple[str, list[str], dict[str, mx.array]]:
        """Template and function arguments and input arrays of matrices of one format."""
        common = _format(list(layers.values()))
        if common is None:
            raise ValueError("The decoder was changed within an answer; start again with a prompt")
        bits, group_size = common
        names = ("weight",) if bits == 16 else ("weight", "scales", "biases")
        arguments, inputs = [], {}
        for prefix, layer in layers.items():
            own = [f"{prefix}_{name}" for name in names]
            inputs.update(zip(own, (layer[name] for name in names)))
            members = own + ["nullptr"] * (3 - len(own))
            arguments.append(f"moxin::Matrix<T>{{{', '.join(members)}}}")
        return f"T, {bits}, {group_size}", arguments, inputs

    def _qkv(self, layer: nn.Module, x: mx.array, position: mx.array) -> list[mx.array]:
        config, attention = self.model.config, layer.self_attn
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        width = config.head_dim
        template, matrices, weights = self._matrices(
            q=attention.q_proj, k=attention.k_proj, v=attention.v_proj
        )
        numbers = [f"{config.rms_norm_eps}f", f"{math.log2(config.rope_theta)}f"]
        return cuda_kernels.run(
            f"qkv<{template}, {config.hidden_size}, {width}, {heads}, {kv_heads}, {THREADS}, "
            f"{QKV_PAIRS}>",
            ["x", "norm", *matrices, "position", *numbers, "queries", "keys", "values"],
            {"x": x, "norm": layer.input_layernorm.weight, **weights, "position": position},
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

    def _project(self, projection: nn.Module, x: mx.array, residual: mx.array) -> mx.array:
        template, matrices, weights = self._matrices(proj=projection)
        return cuda_kernels.run(
            f"project<{template}, {x.size}, {residual.size}, {THREADS}>",
            ["x", *matrices, "residual", "out"],
            {"x": x, **weights, "residual": residual},
            {"out": (residual.shape, x.dtype)},
            file="decode.cu",
            dtype=x.dtype,
            blocks=math.ceil(residual.size / WARPS),
            threads=THREADS,
        )[0]

    def _gate_up(self, layer: nn.Module, x: mx.array) -> mx.array:
        config, mlp = self.model.config, layer.mlp
        template, matrices, weights = self._matrices(gate=mlp.gate_proj, up=mlp.up_proj)
        rows = config.intermediate_size
        return cuda_kernels.run(
            f"gate_up<{template}, {config.hidden_size}, {rows}, {THREADS}, {GATE_UP_PAIRS}>",
            ["x", "norm", *matrices, f"{config.rms_norm_eps}f", "out"],
            {"x": x, "norm": layer.post_attention_layernorm.weight, **weights},
            {"out": ((rows,), x.dtype)},
            file="decode.cu",
            dtype=x.dtype,
            blocks=math.ceil(rows / (WARPS * GATE_UP_PAIRS)),
            threads=THREADS,
        )[0]
