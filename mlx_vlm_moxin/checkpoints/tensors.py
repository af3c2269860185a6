"""Tensors that stay in their file until they are needed.

During a conversion only the tensors of a few layers are in memory. Files are read instead of
mapped: mapped pages count as resident memory, and a failing disk would end the process with a
signal instead of an error.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_vlm.models.moxin.checkpoint import weight_files
from safetensors import SafetensorError, safe_open

from mlx_vlm_moxin.checkpoints.regular_files import check_regular

# dtype names of the safetensors format -> (numpy dtype of the same width, MLX dtype).
SAFETENSORS_DTYPES = {
    "F64": (np.float64, mx.float64),
    "F32": (np.float32, mx.float32),
    "F16": (np.float16, mx.float16),
    "BF16": (np.uint16, mx.bfloat16),
    "I64": (np.int64, mx.int64),
    "I32": (np.int32, mx.int32),
    "I16": (np.int16, mx.int16),
    "I8": (np.int8, mx.int8),
    "U64": (np.uint64, mx.uint64),
    "U32": (np.uint32, mx.uint32),
    "U16": (np.uint16, mx.uint16),
    "U8": (np.uint8, mx.uint8),
    "BOOL": (np.bool_, mx.bool_),
}
_LENGTH_BYTES = 8
# The header of a file with 2,000 tensors has about 250 kB.
_MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 20_000
FORMAT_NAMES = {dtype: name for name, (_, dtype) in SAFETENSORS_DTYPES.items()}


@dataclass(frozen=True)
class LazyTensor:
    """Shape and dtype of a tensor, and a function that reads it."""

    shape: tuple[int, ...]
    dtype: mx.Dtype
    load: Callable[[], mx.array]

    def __setstate__(self, state: object) -> None:
        # A pickle may request this, and a LazyTensor can come from a pickle.
        raise TypeError("a tensor whose attributes are changed")

    @property
    def nbytes(self) -> int:
        """Bytes of the loaded value."""
        return prod(self.shape) * self.dtype.size

    def transpose(self, *axes: int) -> "LazyTensor":
        """The tensor with its axes permuted, without reading it."""
        shape = tuple(self.shape[axis] for axis in axes)
        return LazyTensor(shape, self.dtype, lambda: self.load().transpose(axes))

    def reshape(self, *shape: int) -> "LazyTensor":
        """The tensor in another shape with as many values, without reading it."""
        return LazyTensor(shape, self.dtype, lambda: self.load().reshape(shape))

    @classmethod
    def of(cls, value: mx.array) -> "LazyTensor":
        """Wrap an array that is already in memory."""
        return cls(value.shape, value.dtype, lambda: value)


def is_floating(tensor: "mx.array | LazyTensor") -> bool:
    """Whether the dtype is a floating-point one."""
    return mx.issubdtype(tensor.dtype, mx.floating)


def concatenate(tensors: list[LazyTensor]) -> LazyTensor:
    """Join tensors along their first axis, without reading them.

    Raises:
        ValueError: if their other axes or their dtypes differ.
    """
    first = tensors[0]
    if len({(tensor.shape[1:], tensor.dtype) for tensor in tensors}) > 1:
        shapes = ", ".join(f"{FORMAT_NAMES[tensor.dtype]} {tensor.shape}" for tensor in tensors)
        raise ValueError(f"Cannot join tensors of different kinds: {shapes}")
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
    return LazyTensor(
        shape, first.dtype, lambda: mx.concatenate([tensor.load() for tensor in tensors])
    )


def to_mlx(values: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """``values`` as an array of ``dtype``; uint16 holds the bits of bfloat16."""
    if dtype == mx.bfloat16:
        return mx.array(values).view(mx.bfloat16)
    if dtype == mx.float64:
        return mx.array(values.astype(np.float32))
    return mx.array(values)


def read_span(path: Path, offset: int, count: int, dtype: type[np.generic]) -> np.ndarray:
    """Read ``count`` values of ``dtype`` starting at byte ``offset`` of a file.

    Raises:
        OSError: if the file cannot be read or ends too early.
    """
    values = np.empty(count, dtype)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        rest = memoryview(values.view(np.uint8))
        while rest:
            size = file.readinto(rest)
            if not size:
                raise OSError(f"{path} ends {len(rest)} bytes too early; download it again")
            rest = rest[size:]
    return values


def _check_header_size(path: Path) -> None:
    """Refuse a header that would take long to read, before reading it.

    Raises:
        ValueError: naming the file and the size.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    # The safetensors library reports other damage.
    if _MAX_HEADER_BYTES < size < path.stat().st_size:
        raise ValueError(
            f"{path} has a header of {size} bytes; checkpoints have at most {_MAX_HEADER_BYTES}"
        )


def _read_header(path: Path) -> tuple[dict, int]:
    """JSON header of a safetensors file, and the offset in bytes of its tensor data."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        return json.loads(file.read(size)), _LENGTH_BYTES + size


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one safetensors file, by name, without reading them.

    Raises:
        FileNotFoundError, ValueError: if it is missing or damaged, or MLX does not support a
            tensor's dtype.
    """
    check_regular(path)
    _check_header_size(path)
    try:
        # The library checks the header against the size of the file.
        with safe_open(path, framework="np"):
            header, start = _read_header(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); download it again") from error
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ValueError(f"{path} has {len(header)} tensors; checkpoints have fewer than 3,000")
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise ValueError(
                f"{path}: {name[:100]} has dtype {entry['dtype']}; supported are "
                f"{', '.join(SAFETENSORS_DTYPES)}"
            )
        numpy_dtype, dtype = SAFETENSORS_DTYPES[entry["dtype"]]
        shape = tuple(entry["shape"])
        offset = start + entry["data_offsets"][0]

        def load(shape=shape, offset=offset, numpy_dtype=numpy_dtype, dtype=dtype) -> mx.array:
            values = read_span(path, offset, prod(shape), numpy_dtype)
            return to_mlx(values.reshape(shape), dtype)

        tensors[name] = LazyTensor(shape, mx.float32 if dtype == mx.float64 else dtype, load)
    return tensors


def read_checkpoint(directory: Path) -> dict[str, LazyTensor]:
    """The tensors of all safetensors files of a checkpoint directory, without reading them.

    Raises:
        FileNotFoundError, ValueError: see ``read_safetensors``; or naming a tensor that is in
            two files.
    """
    tensors: dict[str, LazyTensor] = {}
    for path in weight_files(directory):
        for name, tensor in read_safetensors(path).items():
            if name in tensors:
                raise ValueError(f"{directory} has tensor {name[:100]} in two files")
            tensors[name] = tensor
    return tensors
