"""Reads PyTorch checkpoints without PyTorch and without executing anything in them.

A ``torch.save`` file is a zip archive: ``data.pkl`` describes the objects, ``data/<key>``
contains the bytes of each storage. Tensors stay in the file until they are loaded. Reading
any file needs at most seconds and 300 MB; a file that would need more is refused.

Format: ``torch/serialization.py`` and ``torch/_utils.py`` of PyTorch 1.6 and later.
"""

import re
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vlm_moxin.checkpoints.messages import one_line
from mlx_vlm_moxin.checkpoints.pt_archive import PtArchive
from mlx_vlm_moxin.checkpoints.pt_pickle import Functions, PickleReader
from mlx_vlm_moxin.checkpoints.tensors import SAFETENSORS_DTYPES, LazyTensor, read_span, to_mlx

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
# data.pkl of a checkpoint with a few hundred tensors has about 100 kB.
_MAX_PICKLE_BYTES = 8 << 20
# Tensors of vision towers have 4 axes; PyTorch allows 64.
_MAX_AXES = 8
_MAX_COUNT = 2**48
_STORAGE_KEY = re.compile(r"\w{1,32}")
_BYTE_ORDER = "byteorder"


class _StorageType(NamedTuple):
    """The element type of ``torch.FloatStorage`` and the other storage classes."""

    numpy_dtype: type[np.generic]
    dtype: mx.Dtype


class _Storage(NamedTuple):
    """Location of a storage's values in the file."""

    offset: int
    count: int
    kind: _StorageType


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _are_counts(values: Any) -> bool:
    return type(values) is tuple and len(values) <= _MAX_AXES and all(map(_is_count, values))


def _new_dict(*arguments: Any) -> dict:
    """``collections.OrderedDict``, which torch.save calls without arguments."""
    if arguments:
        raise ValueError("an OrderedDict with arguments")
    return {}


def _rebuild_parameter(data: Any, requires_grad: Any, backward_hooks: Any) -> LazyTensor:
    """``torch._utils._rebuild_parameter``: the parameter's tensor."""
    if not isinstance(data, LazyTensor):
        raise ValueError("a parameter without a tensor")
    return data


def _tensor_builder(path: Path) -> Any:
    """``torch._utils._rebuild_tensor_v2`` for tensors of the file ``path``."""

    def rebuild_tensor(
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        requires_grad: Any = False,
        backward_hooks: Any = None,
        metadata: Any = None,
    ) -> LazyTensor:
        """A view of ``storage``; refused if it extends beyond the storage."""
        if (
            type(storage) is not _Storage
            or not _is_count(offset)
            or not (_are_counts(shape) and _are_counts(strides))
            or len(shape) != len(strides)
        ):
            raise ValueError("a tensor whose shape, strides or storage make no sense")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
        if prod(shape) and last >= storage.count:
            raise ValueError(
                f"a tensor of shape {shape} at {offset} in a storage of {storage.count} values"
            )
        return _view(path, storage, offset, shape, strides)

    return rebuild_tensor


def _view(
    path: Path, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> LazyTensor:
    kind = storage.kind
    itemsize = np.dtype(kind.numpy_dtype).itemsize
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))
    start = storage.offset + offset * itemsize

    def load() -> mx.array:
        values = read_span(path, start, span if prod(shape) else 0, kind.numpy_dtype)
        view = np.lib.stride_tricks.as_strided(
            values, shape, [stride * itemsize for stride in strides], writeable=False
        )
        return to_mlx(view, kind.dtype)

    return LazyTensor(shape, mx.float32 if kind.dtype == mx.float64 else kind.dtype, load)


def _functions(path: Path) -> Functions:
    """The globals that the pickle of a state dict may reference."""
    functions: Functions = {
        ("collections", "OrderedDict"): _new_dict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor_builder(path),
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    }
    for name, format_name in _STORAGES.items():
        kind = _StorageType(*SAFETENSORS_DTYPES[format_name])
        functions["torch", name] = functions["torch.storage", name] = kind
    return functions


def _open_storage(archive: PtArchive, persistent_id: Any) -> _Storage:
    """The storage that a persistent id ``("storage", type, key, device, count)`` names."""
    if type(persistent_id) is not tuple or len(persistent_id) != 5:
        raise ValueError("a persistent id that is no storage")
    tag, kind, key, _, count = persistent_id
    if (
        type(tag) is not str
        or tag != "storage"
        or type(kind) is not _StorageType
        or type(key) is not str
        or not _STORAGE_KEY.fullmatch(key)
        or not _is_count(count)
    ):
        raise ValueError("a persistent id that is no storage")
    offset, size = archive.span(f"data/{key}")
    needed = count * np.dtype(kind.numpy_dtype).itemsize
    if needed > size:
        raise ValueError(f"a storage data/{key} of {size} bytes, not {needed}")
    return _Storage(offset, count, kind)


def read_pt(path: Path) -> Any:
    """Read a ``torch.save`` file: nested containers with ``LazyTensor`` leaves.

    float64 tensors are loaded as float32.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: one line that says what is wrong with the file and what to do.
    """
    with PtArchive(path) as archive:
        try:
            if archive.has(_BYTE_ORDER) and archive.read(_BYTE_ORDER, limit=16) != b"little":
                raise ValueError("big-endian values")
            reader = PickleReader(_functions(path), lambda pid: _open_storage(archive, pid))
            return reader.read(archive.read("data.pkl", _MAX_PICKLE_BYTES))
        # Damaged files raise many types of errors.
        except Exception as error:
            raise ValueError(
                f"{path} contains {one_line(error)}; it is not a plain state dict and was not read "
                "further. If you trust the file, load it with torch.load(..., weights_only=True) "
                "and save it again with torch.save"
            ) from error
