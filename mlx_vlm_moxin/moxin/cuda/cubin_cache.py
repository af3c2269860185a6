"""Caches compiled kernels: each is compiled once per process and usually once per machine.

The driver and NVRTC also cache results, but not if their cache is disabled, full, or in a
temporary home folder. Files are in ``$XDG_CACHE_HOME/mlx-vlm-moxin/kernels`` (by default
``~/.cache``), named after everything that the machine code depends on. A file is written under
another name and then renamed, so processes that start together never read half a file, and it
begins with its digest, so a damaged one is compiled again.
"""

import contextlib
import hashlib
import logging
import os
import sys
import tempfile
import threading
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path

from . import device, nvrtc

logger = logging.getLogger(__name__)

DIGEST_BYTES = 32
# Maximum number of files; a model needs up to 150, and one at each width 450.
MAX_FILES = 1000

_futures: dict[str, Future[bytes]] = {}
_lock = threading.Lock()
_announced: list[str] = []


def folder() -> Path:
    """The folder of compiled kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mlx-vlm-moxin" / "kernels"


def _key(source: str, architecture: str) -> str:
    parts = [
        source,
        *(f"{name}\n{text}" for name, text in nvrtc.sources().items()),
        *nvrtc.OPTIONS,
        architecture,
        str(nvrtc.version()),
        str(device.driver_version()),
        version("mlx"),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(path: Path) -> bytes | None:
    """The kernel in a file; None if there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, cubin = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(cubin).digest() != digest:
        logger.debug("%s is damaged, the kernel is compiled again", path)
        return None
    return cubin


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whose folder exists; other processes never read half of it.

    Raises:
        OSError: if it cannot be written; nothing is left of it.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _write(path: Path, cubin: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, hashlib.sha256(cubin).digest() + cubin)
        _remove_oldest(path.parent)
    except OSError as error:
        logger.debug("A compiled kernel is not kept: %s", error)


def _remove_oldest(place: Path) -> None:
    files = sorted(place.glob("*.cubin"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files[MAX_FILES:]:
        with contextlib.suppress(OSError):
            file.unlink()


def _announce() -> None:
    """One line on stderr, in a process that compiles."""
    with _lock:
        if _announced:
            return
        _announced.append(device.name())
    print(f"compiling kernels for {_announced[0]}, once", file=sys.stderr, flush=True)


def _load(source: str, architecture: str, key: str) -> bytes:
    path = folder() / f"{key}.cubin"
    cubin = _read(path)
    if cubin is None:
        _announce()
        cubin = nvrtc.compile_source(source, architecture)
        _write(path, cubin)
    return cubin


def load(source: str, architecture: str) -> bytes:
    """Machine code of CUDA ``source``, from this process, from the disk, or compiled.

    Threads that need the same kernel at the same time wait for the first of them.

    Raises:
        RuntimeError: with the compiler's messages.
    """
    key = _key(source, architecture)
    with _lock:
        future = _futures.get(key)
        is_first = future is None
        if is_first:
            future = _futures[key] = Future()
    if is_first:
        try:
            future.set_result(_load(source, architecture, key))
        except BaseException as error:
            future.set_exception(error)
    return future.result()
