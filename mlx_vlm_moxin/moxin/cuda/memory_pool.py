"""CUDA's memory pool, from which MLX allocates, keeps some of what MLX frees.

By default a pool returns all its free memory to the system whenever MLX waits for the GPU, and
getting it back takes long. mlx-vlm empties MLX's cache of buffers after each prompt and every 50
tokens, and a server's batch allocates its key-value caches again whenever a request begins or ends.
"""

import ctypes
import logging

from . import device

logger = logging.getLogger(__name__)

# CUdevice_attribute and CUmemPool_attribute of the driver.
MEMORY_POOLS_SUPPORTED = 115
RELEASE_THRESHOLD = 4
# Bytes that are kept in addition to a model's, at most, and the part of the GPU's memory.
MAX_KEPT, KEPT_PART = 16 << 30, 1 / 8


def keep(model_bytes: int) -> None:
    """Let the pool keep as much memory as a model of ``model_bytes`` has, and some that is free."""
    if not device.enabled() or not device.attribute(MEMORY_POOLS_SUPPORTED):
        return
    wanted = model_bytes + min(MAX_KEPT, int(KEPT_PART * device.memory()))
    pool, limit = ctypes.c_void_p(), ctypes.c_uint64()
    try:
        with device.calls() as call:
            call("cuDeviceGetDefaultMemPool", ctypes.byref(pool), device.handle())
            call("cuMemPoolGetAttribute", pool, RELEASE_THRESHOLD, ctypes.byref(limit))
            limit.value = max(limit.value, wanted)
            call("cuMemPoolSetAttribute", pool, RELEASE_THRESHOLD, ctypes.byref(limit))
    except RuntimeError as error:
        logger.debug("CUDA's memory pool keeps no free memory: %s", error)
