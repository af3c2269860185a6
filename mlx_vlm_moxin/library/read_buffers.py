"""The buffers in which MLX reads weights before it copies them to a CUDA GPU.

MLX allocates and frees one for each tensor. glibc maps large ones anew each time, so Linux clears
and maps each page of all weights, which takes longer than reading them from its page cache.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import mlx.core as mx

# Parameters of glibc's mallopt, and the number of mapped buffers that it allows by default.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
DEFAULT_MMAP_MAX = 65536
# What glibc itself changes them to where large buffers come and go, until one of them is set.
USUAL_MMAP_THRESHOLD, USUAL_TRIM_THRESHOLD = 32 << 20, 64 << 20
NO_LIMIT = 2**31 - 1


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Use freed buffers again in the enclosed code, and return their memory afterwards.

    It has an effect in the main thread only, because glibc's heaps of other threads are too small.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, NO_LIMIT)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, USUAL_MMAP_THRESHOLD)
        libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        libc.mallopt(M_TRIM_THRESHOLD, USUAL_TRIM_THRESHOLD)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc and MLX computes on a CUDA GPU."""
    if sys.platform != "linux" or not mx.cuda.is_available() or mx.default_device() != mx.gpu:
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
