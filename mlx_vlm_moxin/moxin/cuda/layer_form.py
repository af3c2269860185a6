"""Arrays of a decoder layer, and what the kernels assume about them."""

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx

from .decoder_sizes import DecoderSizes
from .errors import require
from .joined_arrays import offsets
from .projections import Format, Projection, array_types

Formats = tuple[Format, Format, Format, Format]
Rows = tuple[tuple[int, ...], ...]

# Projections, in the order of ``fused_layers.MATRICES``.
QKV, OUTPUT, GATE_UP, DOWN = range(4)


@dataclass(frozen=True, eq=False)
class LayerForm:
    """What layers of the same sizes and formats share; made by ``layer_form``.

    Attributes:
        sizes: of the decoder.
        formats: of the projections.
        rows: of each projection's matrices.
        parts: of each projection, in a layer's arrays.
        post_norm: of the norm before the MLP, in a layer's arrays.
        names: of the arrays of each norm and matrix, in the order of a layer's arrays.
        shapes: of a layer's arrays.
        dtypes: of a layer's arrays.
        is_joined: whether a layer has one array, of 32-bit words, that contains all others.
    """

    sizes: DecoderSizes
    formats: Formats
    rows: Rows
    parts: tuple[slice, ...]
    post_norm: int
    names: list[tuple[str, ...]]
    shapes: list[tuple[int, ...]]
    dtypes: list[mx.Dtype]
    is_joined: bool = False


@functools.lru_cache(maxsize=256)
def layer_form(sizes: DecoderSizes, formats: Formats, rows: Rows | None = None) -> LayerForm:
    """The form of layers of these sizes and formats, always the same object.

    Args:
        rows: of each projection's matrices, if some of them are joined.
    """
    inner = (sizes.intermediate, sizes.intermediate)
    rows = rows or (
        (sizes.attended, sizes.keys, sizes.keys),
        (sizes.hidden,),
        inner,
        (sizes.hidden,),
    )
    widths = sizes.hidden, sizes.attended, sizes.hidden, sizes.intermediate
    names, types, parts, norms = [], [], [], []
    for projection, (form, counts, width) in enumerate(zip(formats, rows, widths)):
        if projection in (QKV, GATE_UP):  # after a norm
            norms.append(len(types))
            names.append(("weight",))
            types.append(((sizes.hidden,), sizes.dtype))
        start = len(types)
        for count in counts:
            names.append(form.arrays)
            types += array_types(form, sizes.dtype, count, width)
        parts.append(slice(start, len(types)))
    shapes, dtypes = (list(found) for found in zip(*types))
    return LayerForm(sizes, formats, rows, tuple(parts), norms[1], names, shapes, dtypes)


def joined_offsets(form: LayerForm) -> list[int]:
    """Where each array of a layer of this form begins in a joined one, and its length, in words."""
    return offsets(zip(form.shapes, form.dtypes))


@functools.lru_cache(maxsize=256)
def joined_form(form: LayerForm) -> LayerForm:
    """The form of layers of this form that have one array, always the same object."""
    shape = (joined_offsets(form)[-1],)
    return replace(form, shapes=[shape], dtypes=[mx.uint32], is_joined=True)


class DecoderLayer(NamedTuple):
    """Arrays of one decoder layer, in the order of moxin::Layer (decoder_layer.cuh).

    A layer of a ``joined_form`` has one array, and no projections or norms by themselves.
    """

    form: LayerForm
    arrays: list[mx.array]

    def check(self) -> None:
        """Raise UnsupportedError if arrays are of other shapes or dtypes than the kernels read."""
        shapes = [array.shape for array in self.arrays]
        require(shapes == self.form.shapes, "a matrix or norm of a layer has another shape")
        dtypes = [array.dtype for array in self.arrays]
        require(dtypes == self.form.dtypes, "a matrix or norm of a layer is of another dtype")

    @property
    def formats(self) -> Formats:
        """Formats of ``projections``."""
        return self.form.formats

    @property
    def projections(self) -> list[Projection]:
        """All projections, in the order of ``fused_layers.MATRICES``."""
        form, arrays = self.form, self.arrays
        found = zip(form.formats, form.rows, form.parts)
        return [Projection(kind, rows, arrays[part]) for kind, rows, part in found]

    @property
    def input_norm(self) -> mx.array:
        """Weight of the norm before attention."""
        return self.arrays[0]

    @property
    def post_norm(self) -> mx.array:
        """Weight of the norm before the MLP."""
        return self.arrays[self.form.post_norm]
