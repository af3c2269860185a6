"""Matrices as the kernels read them: their formats, and the check that one has such a format."""

import functools
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers import distributed

from .. import linear
from .errors import UnsupportedError, require

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)


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


def _format(layer: nn.Module, kinds: Kinds) -> Format:
    # Compared by class: adapters and subclasses may compute something else.
    kind = type(layer)
    if kind in kinds.plain:
        return PLAIN_FORMAT
    is_known = kind in kinds.quantized
    require(is_known, "a matrix is an adapter, sharded in another way or of another class")
    return _quantized_format(layer.bits, layer.group_size, layer.mode)


@functools.cache
def _expected(form: Format, dtype: mx.Dtype, width: int) -> list[tuple[str, int, mx.Dtype]]:
    """Names, columns and dtypes of the arrays of a matrix with ``width`` inputs."""
    columns = [width]
    if form.bits < 16:
        groups = width // form.group_size
        columns = [width * form.bits // 32, groups, groups]
    return list(zip(form.arrays, columns, form.dtypes(dtype)))


def read_projection(
    dtype: mx.Dtype, width: int, *layers: nn.Module, kinds: Kinds = WHOLE
) -> Projection:
    """``layers``, which have ``width`` inputs, as one projection.

    Raises:
        UnsupportedError: if they are of different formats or of other classes, dtypes or shapes.
    """
    # Written for speed, because a further question about a picture waits for this.
    form, rows, arrays = _format(layers[0], kinds), [], []
    expected = _expected(form, dtype, width)
    for layer in layers:
        if layer is not layers[0] and _format(layer, kinds) is not form:
            raise UnsupportedError("matrices that are multiplied together are packed apart")
        if len(layer) != len(expected):
            raise UnsupportedError("a matrix has a bias or other parameters")
        count = layer["weight"].shape[0]
        for name, columns, kind in expected:
            array = layer[name]
            if array.shape != (count, columns):
                raise UnsupportedError("a matrix has another shape")
            if array.dtype != kind:
                raise UnsupportedError("a matrix is of another dtype than the norms")
            arrays.append(array)
        rows.append(count)
    return Projection(form, tuple(rows), arrays)
