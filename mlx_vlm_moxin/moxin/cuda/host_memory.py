"""Memory of the host that kernels read and write directly.

An array's memory moves between host and GPU page by page, which for a picture takes longer than
resizing it. This memory stays where it is.
"""

import contextlib
import ctypes
import threading
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from . import device
from .errors import UnsupportedError

# Buffers are kept for further pictures; those of pictures up to 512 K pixels have one size.
MIN_BYTES = 2**21
PORTABLE, MAPPED = 1, 2  # CU_MEMHOSTALLOC_*


class Buffer(NamedTuple):
    """Memory at an ``address`` that is the same for the host and the GPU.

    Attributes:
        values: of the memory, uint8.
        results: of the kernels that use it; whoever borrows it adds them. They are submitted at the
            end, and the next one gets the memory when they are computed.
    """

    address: int
    values: np.ndarray
    results: list[mx.array]


class Buffers:
    """Buffers that are used again and never freed. Several threads may borrow at once."""

    def __init__(self):
        # The one that was returned first is the next.
        self._free: dict[int, deque[Buffer]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrow(self, num_bytes: int) -> Iterator[Buffer]:
        """At least ``num_bytes``, which the host may use until the end of the context.

        Raises:
            UnsupportedError: if the driver does not give so much.
        """
        size = max(MIN_BYTES, 1 << (num_bytes - 1).bit_length())
        with self._lock:
            free = self._free.setdefault(size, deque())
            buffer = free.popleft() if free else _make_buffer(size)
        try:
            mx.eval(buffer.results)
            buffer.results.clear()
            yield buffer
        finally:
            # The next thread to borrow this memory waits for them, but could not submit them.
            mx.async_eval(buffer.results)
            with self._lock:
                free.append(buffer)


def _make_buffer(size: int) -> Buffer:
    address = _allocate(size)
    values = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    return Buffer(address, values, [])


def _allocate(size: int) -> int:
    address = ctypes.c_void_p()
    try:
        with device.calls() as call:
            flags = ctypes.c_uint(PORTABLE | MAPPED)
            call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(size), flags)
    except RuntimeError as error:
        raise UnsupportedError(f"no memory that the GPU can read: {error}") from error
    return address.value


buffers = Buffers()
