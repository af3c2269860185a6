"""The NVIDIA GPU that MLX uses: whether the kernels run on it, and its sizes."""

import contextlib
import ctypes
import functools
import logging
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from . import nvrtc

logger = logging.getLogger(__name__)

SWITCH = "MLX_VLM_MOXIN_KERNELS"
# The kernels write into their inputs, and MLX calls their interface experimental, so they are used
# with tested versions only: from the first up to, not including, the second.
TESTED_MLX = ((0, 32), (0, 33))
# bfloat16 conversion in one instruction.
MIN_COMPUTE_CAPABILITY = 8
# Hopper, for which kernels are compiled with the instructions of that architecture alone.
WARPGROUPS = {"sm_90": "sm_90a"}
# CUdevice_attribute of the driver.
MULTIPROCESSOR_COUNT = 16
MAX_SHARED_MEMORY_PER_BLOCK = 97
MPS_ENABLED = 133
# CUfunction_attribute.
MAX_DYNAMIC_SHARED_MEMORY = 8
CUDA_ERROR_INVALID_VALUE = 1
# Bytes of a thread block's shared memory reserved for the driver and for a kernel's static arrays.
STATIC_SHARED_MEMORY = 8192
# Characters of a failure in a warning.
MAX_REASON = 400

_failures: list[str] = []


def disable_after(error: RuntimeError) -> None:
    """Switch the kernels off for this process, with one warning that says why.

    Args:
        error: of compiling, loading or launching a kernel. Raised again if memory ran out, since
            MLX's kernels would not need less.
    """
    reason = str(error)
    if "out of memory" in reason.lower() or "allocate" in reason.lower():
        raise error
    if not _failures:
        logger.warning(
            "The CUDA kernels are off, and MLX computes everything, with the same results: %s",
            reason[:MAX_REASON],
        )
    _failures.append(reason)


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(code: int, call: str) -> None:
    """Raise RuntimeError if a call of the driver returned an error."""
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{call}: {(text.value or b'error').decode()} ({code})")


@functools.cache
def handle() -> ctypes.c_int:
    """The driver's handle of MLX's GPU."""
    device, address = ctypes.c_int(), mx.device_info()["pci_bus_id"].encode()
    _check(_driver().cuInit(0), "cuInit")
    code = _driver().cuDeviceGetByPCIBusId(ctypes.byref(device), address)
    _check(code, "cuDeviceGetByPCIBusId")
    return device


@functools.cache
def name() -> str:
    """The GPU's name."""
    return mx.device_info()["device_name"]


@functools.cache
def driver_version() -> int:
    """CUDA version of the driver, such as 13000."""
    value = ctypes.c_int()
    _check(_driver().cuDriverGetVersion(ctypes.byref(value)), "cuDriverGetVersion")
    return value.value


@functools.cache
def attribute(number: int) -> int:
    """A CUdevice_attribute of MLX's GPU; 0 for one that the driver does not know."""
    value = ctypes.c_int()
    code = _driver().cuDeviceGetAttribute(ctypes.byref(value), number, handle())
    if code == CUDA_ERROR_INVALID_VALUE:
        return 0
    _check(code, "cuDeviceGetAttribute")
    return value.value


def multiprocessors() -> int:
    """Number of the GPU's multiprocessors."""
    return attribute(MULTIPROCESSOR_COUNT)


def max_shared_memory() -> int:
    """Bytes of dynamic shared memory that a thread block may have."""
    return attribute(MAX_SHARED_MEMORY_PER_BLOCK) - STATIC_SHARED_MEMORY


@functools.cache
def memory() -> int:
    """Bytes of the GPU's memory."""
    value = ctypes.c_size_t()
    code = _driver().cuDeviceTotalMem_v2(ctypes.byref(value), handle())
    _check(code, "cuDeviceTotalMem")
    return value.value


@functools.cache
def unsupported() -> str | None:
    """Why kernels cannot be used with MLX's GPU, logged once at debug level; None if they can."""
    if not mx.cuda.is_available():
        return "MLX has no NVIDIA GPU here"
    info = mx.device_info()  # slow, since it also queries the free memory
    installed = tuple(int(part) for part in version("mlx").split(".")[:2])
    reason = None
    if not TESTED_MLX[0] <= installed < TESTED_MLX[1]:
        reason = f"they are not tested with MLX {version('mlx')}"
    elif nvrtc.library() is None:
        reason = "NVIDIA's run-time compiler (libnvrtc) is not loaded"
    elif info["compute_capability_major"] < MIN_COMPUTE_CAPABILITY:
        reason = f"{info['device_name']} is older than compute capability 8.0"
    elif attribute(MPS_ENABLED):
        reason = "the GPU is shared through MPS, where a kernel's thread blocks may not all run"
    if reason:
        logger.debug("The CUDA kernels are not used: %s", reason)
    return reason


@functools.cache
def architecture() -> str | None:
    """What kernels are compiled for, such as ``sm_90a``; None if the GPU cannot be used."""
    if unsupported() is not None:
        return None
    name = mx.device_info()["architecture"]
    return WARPGROUPS.get(name, name)


def has_warpgroups() -> bool:
    """Whether the GPU has the products of four warps (wgmma)."""
    return architecture() in WARPGROUPS.values()


def reason_off() -> str | None:
    """Why no kernel is used now; None if MLX computes on a GPU on which they run."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"{SWITCH}=0 is set"
    if _failures:
        return _failures[0]
    if mx.default_device() != mx.gpu:
        return "MLX computes on the CPU"
    return unsupported()


def enabled() -> bool:
    """Whether MLX computes on an NVIDIA GPU on which the kernels run and may be used."""
    return reason_off() is None


@contextlib.contextmanager
def calls() -> Iterator[Callable[..., None]]:
    """A function that calls one of the driver's, by name, in the context of MLX's GPU.

    It raises RuntimeError if that returns an error.
    """
    driver, context = _driver(), ctypes.c_void_p()

    def call(name: str, *arguments: Any) -> None:
        _check(getattr(driver, name)(*arguments), name.removesuffix("_v2"))

    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle())
    try:
        call("cuCtxPushCurrent_v2", context)
        try:
            yield call
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(handle())


@functools.cache
def resident_blocks(cubin: bytes, name: str, threads: int, shared_memory: int) -> int:
    """Number of a kernel's thread blocks that the GPU can run at the same time.

    Args:
        cubin: machine code.
        name: of the kernel in it.
        threads: per block.
        shared_memory: dynamic, bytes per block.

    Raises:
        RuntimeError: if the driver cannot load the kernel or does not allow so much memory.
    """
    module, function, blocks = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
    with calls() as call:
        call("cuModuleLoadData", ctypes.byref(module), cubin)
        try:
            call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
            call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_MEMORY, shared_memory)
            size = ctypes.c_size_t(shared_memory)
            question = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
            call(question, ctypes.byref(blocks), function, threads, size)
        finally:
            call("cuModuleUnload", module)
    return blocks.value * multiprocessors()
