"""Plain matrices that are multiplied by the same input, as one matrix.

MLX records each product with cuBLAS as a separate graph, which takes 20 us of host time. For a
prompt of 288 tokens the smaller products run no longer than that. So q_proj, k_proj and v_proj,
and gate_proj and up_proj, are moved next to each other in memory, once, and each module's weight
becomes a view of its part. Nothing is stored twice.
"""

import copy
import functools
import io
import weakref
from collections.abc import Collection
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .layer_form import GATE_UP, QKV, DecoderLayer, LayerForm, layer_form


class _Joined(NamedTuple):
    """A matrix and its parts.

    Attributes:
        whole: the matrix.
        parts: references to the weights.
        values: what the weights were when they were joined; they refer to the memory of ``whole``.
        drawing: of ``values``.
    """

    whole: mx.array
    parts: list[weakref.ref[mx.array]]
    values: list[mx.array]
    drawing: str


# By the id of the first part. An entry goes as soon as one of its parts does, so a weight that was
# replaced is not kept in memory.
_joined: dict[int, _Joined] = {}


def join(layer: DecoderLayer, projections: Collection[int] = (QKV, GATE_UP)) -> DecoderLayer | None:
    """``layer`` with one matrix in the plain ones of these projections.

    Returns:
        None if the matrices of one of them are not the parts of one matrix, which ``move`` changes.
    """
    chosen = tuple(index for index in _plain(layer.form) if index in projections)
    arrays = list(layer.arrays)
    for index in reversed(chosen):  # which leaves the places of those before
        part = layer.form.parts[index]
        whole = _find(arrays[part])
        if whole is None:
            return None
        arrays[part] = [whole]
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
    return found.whole if _draw(*found.values, *arrays) == found.drawing else None


def _draw(*arrays: mx.array) -> str:
    """A text that shows each value once.

    It differs if one was written in place (``weight *= 2``), which leaves the same object of Python
    with other memory; MLX has no other way to see that. Takes 2 us.
    """
    drawing = io.StringIO()
    mx.export_to_dot(drawing, *arrays)
    return drawing.getvalue()


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

    references = [weakref.ref(part, forget) for part in parts]
    values = [copy.copy(part) for part in parts]
    _joined[key] = _Joined(whole, references, values, _draw(*values))
