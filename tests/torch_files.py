"""Writes valid and invalid files in PyTorch's zip format, without PyTorch."""

import contextlib
import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(np.uint16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.complex64): "ComplexFloatStorage",
}


def _rebuild(*arguments: Any) -> None:
    """Pickled by name only."""


class Storage:
    """Values that several tensors may share."""

    def __init__(self, values: np.ndarray):
        self.values = values


class Tensor:
    """A view of a storage; its shape and strides may be wrong on purpose."""

    def __init__(
        self, storage: Storage, offset: int, shape: tuple, strides: tuple, state: Any = None
    ):
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())
        self.state = state

    def __reduce__(self) -> tuple:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments, self.state


class Parameter:
    """Pickles like ``torch.nn.Parameter``."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __reduce__(self) -> tuple:
        arguments = (self.tensor, True, OrderedDict())
        return sys.modules["torch._utils"]._rebuild_parameter, arguments


class Call:
    """An object whose pickle calls ``function``."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def tensor(values: np.ndarray) -> Tensor:
    """A contiguous tensor with a separate storage."""
    strides = tuple(stride // values.itemsize for stride in values.strides)
    return Tensor(Storage(values), 0, values.shape, strides)


@contextlib.contextmanager
def _torch_names() -> Iterator[None]:
    """Modules and names that must exist for the pickler to refer to them."""
    modules = {name: ModuleType(name) for name in ("torch", "torch._utils")}
    for name in STORAGES.values():
        setattr(modules["torch"], name, type(name, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        function = type(_rebuild)(_rebuild.__code__, {}, name)
        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(modules["torch._utils"], name, function)
    saved = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.storages: list[Storage] = []

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Storage):
            return None
        if value not in self.storages:
            self.storages.append(value)
        kind = getattr(sys.modules["torch"], STORAGES[value.values.dtype])
        return "storage", kind, str(self.storages.index(value)), "cpu", value.values.size


def pickled(content: Any) -> tuple[bytes, list[Storage]]:
    """``data.pkl`` and the storages that belong to it."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    with _torch_names():
        pickler.dump(content)
    return file.getvalue(), pickler.storages


def write_pt(
    path: Path,
    content: Any,
    compression: int = zipfile.ZIP_STORED,
    byteorder: str = "little",
    data: bytes | None = None,
) -> Path:
    """Write the file of ``torch.save(content, path)``; ``data`` replaces its data.pkl."""
    description, storages = pickled(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", description if data is None else data)
        archive.writestr("archive/byteorder", byteorder)
        for key, storage in enumerate(storages):
            archive.writestr(f"archive/data/{key}", storage.values.tobytes())
        archive.writestr("archive/version", "3\n")
    return path
