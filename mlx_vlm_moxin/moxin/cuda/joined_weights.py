"""Plain matrices that are multiplied by the same input, as one matrix.

MLX records each product with cuBLAS as a separate graph, which takes 20 us of host time. For a
prompt of 288 tokens the smaller products run no longer than that. So q_proj, k_proj and v_proj,
and gate_proj and up_proj, are moved next to each other in memory, once, and each module's weight
becomes a view of its part. Nothing is stored twice.
"""

import functools
import weakref
from collections.abc import Collection
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .layer_form import GATE_UP, QKV, DecoderLayer, LayerForm, layer_form


class _Joined(NamedTuple):
    """A matrix, and references to the weights that are its parts."""

    whole: mx.array
    parts: list[weakref.ref[mx.array]]


# By the id of the first part. An entry goes as soon as one of its parts does, so a weight that was
# replaced is not kept in memory.
_joined: dict[int, _Joined] = {}


def has_plain(layer: DecoderLayer) -> bool:
    """Whether a projection of ``layer`` can be joined: a plain one of several matrices."""
    return bool(_plain(layer.form))


def are_joined(layer: DecoderLayer) -> bool:
    """Whether the plain projections of ``layer`` are parts of one matrix each."""
    parts = [layer.form.parts[index] for index in _plain(layer.form)]
    return all(_find(layer.arrays[part]) is not None for part in parts)


def join(layer: DecoderLayer, projections: Collection[int] = (QKV, GATE_UP)) -> DecoderLayer:
    """``layer``, whose projections ``are_joined``, with one matrix in the plain ones of these."""
    chosen = tuple(index for index in _plain(layer.form) if index in projections)
    arrays = list(layer.arrays)
    for index in reversed(chosen):  # which leaves the places of those before
        part = layer.form.parts[index]
        arrays[part] = [_find(arrays[part])]
    return DecoderLayer(_joined_form(layer.form, chosen), arrays)


def _plain(form: LayerForm) -> list[int]:
    return [index for index in (QKV, GATE_UP) if form.formats[index].bits == 16]


@functools.lru_cache(maxsize=256)
def _joined_form(form: LayerForm, chosen: tuple[int, ...]) -> LayerForm:
    """The form of a layer with one matrix in each of the ``chosen`` projections."""
    rows = [(sum(counts),) if index in chosen else counts for index, counts in enumerate(form.rows)]
    return layer_form(form.sizes, form.formats, tuple(rows))


def _find(arrays: list[mx.array]) -> mx.array | None:
    """The matrix of which these are the parts."""
    found = _joined.get(id(arrays[0]))
    if found is None or any(part() is not array for part, array in zip(found.parts, arrays)):
        return None
    return found.whole


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
