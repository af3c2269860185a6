"""Plain matrices that are multiplied by the same input, as one matrix.

MLX records each product with cuBLAS as a separate graph, which takes 20 us of host time. For a
prompt of 288 tokens the smaller products run no longer than that. So q_proj, k_proj and v_proj,
and gate_proj and up_proj, are moved next to each other in memory, once, and each module's weight
becomes a view of its part. Nothing is stored twice.
"""

import weakref
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .decoder_layers import DecoderLayer
from .projections import Projection


class _Joined(NamedTuple):
    """A matrix, and references to the weights that are its parts."""

    whole: mx.array
    parts: list[weakref.ref[mx.array]]


# By the id of the first part. An entry goes as soon as one of its parts does, so a weight that was
# replaced is not kept in memory.
_joined: dict[int, _Joined] = {}


def are_joined(layer: DecoderLayer) -> bool:
    """Whether the plain projections of ``layer`` are parts of one matrix each."""
    return all(_find(projection) is not None for projection in (layer.qkv, layer.gate_up))


def join(layer: DecoderLayer) -> DecoderLayer:
    """``layer``, whose projections ``are_joined``, with one matrix in each plain one."""
    return layer._replace(qkv=_find(layer.qkv), gate_up=_find(layer.gate_up))


def _find(projection: Projection) -> Projection | None:
    if projection.format.bits < 16:
        return projection
    found = _joined.get(id(projection.arrays[0]))
    if found is None or any(
        part() is not array for part, array in zip(found.parts, projection.arrays)
    ):
        return None
    return Projection(projection.format, (sum(projection.rows),), [found.whole])


def move(block: nn.Module) -> None:
    """Let the weights of the plain projections of ``block`` be parts of one matrix each.

    One projection after the other, so that memory for one more is enough, if nothing else refers to
    the weights.

    Args:
        block: one of mlx-vlm's Llama blocks, supported by the kernels.
    """
    attention, mlp = block["self_attn"], block["mlp"]
    _move(attention["q_proj"], attention["k_proj"], attention["v_proj"])
    _move(mlp["gate_proj"], mlp["up_proj"])


def _move(*modules: nn.Module) -> None:
    if "scales" in modules[0]:
        return
    weights = [module["weight"] for module in modules]
    edges = [sum(map(len, weights[:index])) for index in range(1, len(weights))]
    whole = mx.concatenate(weights)
    parts = mx.split(whole, edges)
    mx.eval(whole, parts)
    for module, part in zip(modules, parts):
        module.weight = part
    del weights
    mx.clear_cache()  # or what the weights occupied would add up
    key = id(parts[0])

    def forget(_: weakref.ref[mx.array]) -> None:
        _joined.pop(key, None)

    _joined[key] = _Joined(whole, [weakref.ref(part, forget) for part in parts])
