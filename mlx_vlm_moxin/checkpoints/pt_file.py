"""PyTorch checkpoints without PyTorch and without running anything that is in them.

A ``torch.save`` file is a zip archive: ``data.pkl`` describes the objects, ``data/<key>``
holds the bytes of each storage, uncompressed. The pickle may name a handful of globals,
each of which stands for an inert object here; any other ends the reading, so nothing in
the file can run. Tensors stay in the file until they are loaded.

Format: ``torch/serialization.py`` and ``torch/_utils.py`` of PyTorch 1.6 and later.
"""

import io
import pickle
import struct
import zipfile
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

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
# The description of a checkpoint with some hundred tensors has about 100 kB.
_MAX_PICKLE_BYTES = 64 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_RESAVE = "load it with torch.load(..., weights_only=True) and save it again with torch.save"


class _StorageType(NamedTuple):
    """Stands for ``torch.FloatStorage`` and its siblings."""

    numpy_dtype: type[np.generic]
    dtype: mx.Dtype


class _Storage(NamedTuple):
    """Where a storage's values are in the file."""

    offset: int
    count: int
    kind: _StorageType


class _StateDict(dict):
    """Stands for ``collections.OrderedDict``; attributes such as ``_metadata`` are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _RebuildParameter:
    """Stands for ``torch._utils._rebuild_parameter``. Slots keep it unchangeable."""

    __slots__ = ()

    def __call__(self, data: Any, requires_grad: Any, backward_hooks: Any) -> Any:
        return data


class _RebuildTensor:
    """Stands for ``torch._utils._rebuild_tensor_v2``. Slots keep it unchangeable."""

    __slots__ = ("_path",)

    def __init__(self, path: Path):
        object.__setattr__(self, "_path", path)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)

    def __call__(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        requires_grad: Any = False,
        backward_hooks: Any = None,
        metadata: Any = None,
    ) -> LazyTensor:
        """A view of ``storage``, refused if it reaches outside of it."""
        numbers = [offset, *shape, *strides]
        if (
            type(storage) is not _Storage
            or len(shape) != len(strides)
            or any(type(number) is not int or number < 0 for number in numbers)
        ):
            raise ValueError(f"a tensor with shape {shape!r} and strides {strides!r}")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
        if prod(shape) and last >= storage.count:
            raise ValueError(
                f"a tensor of shape {shape} at {offset} in a storage of {storage.count} values"
            )
        return _view(self._path, storage, offset, tuple(shape), tuple(strides))


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


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers, strings and :class:`LazyTensor`, and nothing else."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str, data: bytes):
        super().__init__(io.BytesIO(data))
        self._path, self._archive, self._root = path, archive, root
        self._globals = {
            ("collections", "OrderedDict"): _StateDict,
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(path),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
        }
        for name, format_name in _STORAGES.items():
            kind = _StorageType(*SAFETENSORS_DTYPES[format_name])
            self._globals["torch", name] = self._globals["torch.storage", name] = kind

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._globals:
            return self._globals[module, name]
        if module.startswith("torch") and name.endswith("Storage"):
            raise ValueError(f"a tensor of an unknown dtype ({module}.{name})")
        raise ValueError(f"the global {module}.{name}, which no state dict needs")

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, count = pid
        if tag != "storage" or type(kind) is not _StorageType or type(count) is not int:
            raise ValueError(f"a persistent id {pid!r}")
        info = self._archive.getinfo(f"{self._root}data/{key}")
        needed = count * np.dtype(kind.numpy_dtype).itemsize
        if not 0 <= needed <= info.file_size:
            raise ValueError(f"a storage {info.filename} of {info.file_size} bytes, not {needed}")
        return _Storage(_data_offset(self._path, info), count, kind)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Byte at which an uncompressed member's data start."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(f"a compressed or encrypted member {info.filename}")
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        signature, name_size, extra_size = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start = info.header_offset + _LOCAL_HEADER.size + name_size + extra_size
    if signature != b"PK\3\4" or start + info.file_size > path.stat().st_size:
        raise ValueError(f"a member {info.filename} that lies outside of the file")
    return start


def _find_root(archive: zipfile.ZipFile) -> str:
    """Folder of the archive that holds ``data.pkl``, with its slash."""
    names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(names) != 1:
        raise ValueError(f"{len(names)} members called data.pkl instead of one")
    return names[0].removesuffix("data.pkl")


def _unpickle(path: Path, archive: zipfile.ZipFile) -> Any:
    root = _find_root(archive)
    info = archive.getinfo(root + "data.pkl")
    if info.file_size > _MAX_PICKLE_BYTES:
        raise ValueError(f"a data.pkl of {info.file_size} bytes")
    order = f"{root}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ValueError("big-endian values")
    return _Unpickler(path, archive, root, archive.read(info)).load()


def read_pt(path: Path) -> Any:
    """What ``torch.save`` wrote: nested containers with :class:`LazyTensor` leaves.

    float64 tensors load as float32.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: one line that says what is wrong with the file and what to do.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if start != b"PK\3\4":
        raise ValueError(
            f"{path} is not in PyTorch's zip format; if it comes from PyTorch before 1.6, {_RESAVE}"
        )
    try:
        archive = zipfile.ZipFile(path)
    # Damaged directories of members and hostile pickles raise anything.
    except Exception as error:
        raise ValueError(f"{path} is cut short or damaged; download it again") from error
    with archive:
        try:
            return _unpickle(path, archive)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{path} holds {reason}; this is no plain state dict and was not read further. "
                f"If you trust the file, {_RESAVE}"
            ) from error
