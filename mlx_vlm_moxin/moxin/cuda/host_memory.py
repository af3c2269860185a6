"""Memory of the host that kernels read and write directly.

An array's memory moves between host and GPU page by page, which for a picture takes longer than
resizing it. This memory stays where it is.
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterator

import numpy as np

from . import device
from .errors import UnsupportedError

# Buffers are kept for further pictures; those of pictures up to 512 K pixels have one size.
MIN_BYTES = 2**21
PORTABLE, MAPPED = 1, 2  # CU_MEMHOSTALLOC_*


class Buffers:
    """Buffers that are used again and never freed. Several threads may borrow at once."""

    def __init__(self):
        self._free: dict[int, list[int]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrow(self, num_bytes: int) -> Iterator[int]:
        """The address of at least ``num_bytes``, the same for the host and the GPU.

        No kernel may use it after the context.

        Raises:
            UnsupportedError: if the driver does not give so much.
        """
        size = max(MIN_BYTES, 1 << (num_bytes - 1).bit_length())
        with self._lock:
            free = self._free.setdefault(size, [])
            address = free.pop() if free else _allocate(size)
        try:
            yield address
        finally:
            with self._lock:
                free.append(address)


def _allocate(size: int) -> int:
    address = ctypes.c_void_p()
    try:
        with device.calls() as call:
            flags = ctypes.c_uint(PORTABLE | MAPPED)
            call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(size), flags)
    except RuntimeError as error:
        raise UnsupportedError(f"no memory that the GPU can read: {error}") from error
    return address.value


def as_array(address: int, num_bytes: int) -> np.ndarray:
    """The uint8 values at ``address``."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))


buffers = Buffers()
