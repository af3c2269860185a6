"""Matrices as the kernels read them: their formats, and the check that one has such a format."""

import functools
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers import distributed

from .. import linear
from .errors import require

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)

OTHER_PARAMETERS = "a matrix has a bias or other parameters"


class Kinds(NamedTuple):
    """Classes of matrices that the kernels may multiply in the same place."""

    plain: tuple[type[nn.Module], ...]
    quantized: tuple[type[nn.Module], ...]


WHOLE = Kinds((nn.Linear, linear.Linear), (nn.QuantizedLinear, linear.QuantizedLinear))
# Some rows of a matrix, which give some values of the product.
SHARDED_ROWS = Kinds((distributed.AllToShardedLinear,), (distributed.QuantizedAllToShardedLinear,))
# Some columns, the products of which the processes must add up.
SHARDED_COLUMNS = Kinds(
    (distributed.ShardedToAllLinear,), (distributed.QuantizedShardedToAllLinear,)
)


class Format(NamedTuple):
    """How a matrix is stored.

    Attributes:
        bits: 16 for a plain matrix.
        group_size: weights that share a scale; 0 for a plain matrix.
    """

    bits: int
    group_size: int

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of a matrix's arrays."""
        return ("weight",) if self.bits == 16 else ("weight", "scales", "biases")

    def dtypes(self, dtype: mx.Dtype) -> tuple[mx.Dtype, ...]:
        """Those of ``arrays`` in a model of ``dtype``."""
        return (dtype,) if self.bits == 16 else (mx.uint32, dtype, dtype)

    @property
    def c_type(self) -> str:
        """The format in C++ (weights.cuh)."""
        return f"moxin::Format<{self.bits}, {self.group_size}>"


PLAIN_FORMAT = Format(16, 0)


class Projection(NamedTuple):
    """Matrices of one format that a kernel multiplies together.

    Attributes:
        rows: of each matrix.
        arrays: of one matrix after the other, in the order of ``format.arrays``.
    """

    format: Format
    rows: tuple[int, ...]
    arrays: list[mx.array]


@functools.cache
def _quantized_format(bits: int, group_size: int, mode: str) -> Format:
    is_known = mode == "affine" and bits in BITS and group_size in GROUP_SIZES
    require(is_known, "a matrix has another packing")
    return Format(bits, group_size)


def read_format(layer: nn.Module, kinds: Kinds = WHOLE) -> Format:
    """How the matrix of ``layer`` is stored.

    Raises:
        UnsupportedError: if it is of other classes, packed in another way, or has a bias.
    """
    # Compared by class: adapters and subclasses may compute something else.
    kind, form = type(layer), PLAIN_FORMAT
    if kind not in kinds.plain:
        is_known = kind in kinds.quantized
        require(is_known, "a matrix is an adapter, sharded in another way or of another class")
        form = _quantized_format(layer.bits, layer.group_size, layer.mode)
    require(set(layer) == set(form.arrays), OTHER_PARAMETERS)
    return form


def array_types(
    form: Format, dtype: mx.Dtype, rows: int, width: int
) -> list[tuple[tuple[int, int], mx.Dtype]]:
    """Shapes and dtypes of the arrays of a matrix with ``width`` inputs, as ``form.arrays``."""
    columns = [width]
    if form.bits < 16:
        groups = width // form.group_size
        columns = [width * form.bits // 32, groups, groups]
    return [((rows, count), kind) for count, kind in zip(columns, form.dtypes(dtype))]


def read_projection(dtype: mx.Dtype, width: int, layer: nn.Module) -> Projection:
    """``layer``, a matrix with ``width`` inputs, as a projection.

    Raises:
        UnsupportedError: if it is of another format, class, dtype or shape.
    """
    form = read_format(layer)
    arrays, rows = [layer[name] for name in form.arrays], layer["weight"].shape[0]
    types = [(array.shape, array.dtype) for array in arrays]
    is_same = types == array_types(form, dtype, rows, width)
    require(is_same, "a matrix is of another shape or dtype")
    return Projection(form, (rows,), arrays)
