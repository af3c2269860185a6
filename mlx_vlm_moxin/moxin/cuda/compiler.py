"""CUDA kernels of our own, from ``kernels/``: compiled by NVRTC, launched by MLX.

``mx.fast.cuda_kernel`` puts MLX's headers in front of every kernel, and each process reads
them anew, 1 to 2 s per kernel. Compiled here, most take 0.1 to 0.2 s.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

KERNELS = Path(__file__).with_name("kernels")
C_TYPES = {
    mx.bfloat16: "moxin::bfloat16",
    mx.float16: "moxin::float16",
    mx.float32: "float",
    mx.int32: "int",
    mx.uint32: "unsigned int",
}
# What T stands for in kernels.
DTYPES = (mx.bfloat16, mx.float16)
# bfloat16 conversion in one instruction.
MIN_COMPUTE_CAPABILITY = 8
NVRTC_VERSIONS = (13, 12)
# MLX puts arrays of up to 8 bytes into host memory, which a kernel reads in 10 us.
MIN_SIZE = 4
# Of the driver's CUdevice_attribute.
MULTIPROCESSOR_COUNT = 16
SHARED_MEMORY_OF_BLOCK = 97
# Bytes of a block's shared memory that the driver and a kernel's own arrays may take.
STATIC_SHARED_MEMORY = 8192


@functools.cache
def _nvrtc() -> ctypes.CDLL | None:
    """The compiler that MLX's CUDA backend has loaded already."""
    for version in NVRTC_VERSIONS:
        try:
            return ctypes.CDLL(f"libnvrtc.so.{version}")
        except OSError:
            continue
    return None


@functools.cache
def _architecture() -> str | None:
    """The GPU's, such as ``sm_90``, if kernels can be compiled for it."""
    if not mx.cuda.is_available() or _nvrtc() is None:
        return None
    info = mx.device_info()  # also asks for the free memory, which takes a while
    is_new = info["compute_capability_major"] >= MIN_COMPUTE_CAPABILITY
    return info["architecture"] if is_new else None


@functools.cache
def device_attribute(number: int) -> int:
    """One of the driver's for the GPU that MLX uses."""
    driver, device, value = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int()
    address = mx.device_info()["pci_bus_id"].encode()
    driver.cuDeviceGetByPCIBusId(ctypes.byref(device), address)
    driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
    return value.value


def multiprocessors() -> int:
    """How many the GPU has: as many blocks of a kernel certainly run at the same time."""
    return device_attribute(MULTIPROCESSOR_COUNT)


def max_shared_memory() -> int:
    """Bytes of dynamic shared memory that a block may have."""
    return device_attribute(SHARED_MEMORY_OF_BLOCK) - STATIC_SHARED_MEMORY


def block_counter() -> mx.array:
    """Zeros, with which a kernel whose blocks wait for each other counts them (kernels/grid.cu)."""
    return mx.zeros(MIN_SIZE, mx.uint32)


def is_available() -> bool:
    """Whether arrays are on an NVIDIA GPU by default and kernels can be compiled for it."""
    return mx.default_device() == mx.gpu and _architecture() is not None


def _strings(texts: Sequence[str]) -> ctypes.Array:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _read(function: str, program: ctypes.c_void_p) -> bytes:
    """What ``nvrtcGet<function>`` gives."""
    size = ctypes.c_size_t()
    getattr(_nvrtc(), f"nvrtcGet{function}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(_nvrtc(), f"nvrtcGet{function}")(program, buffer)
    return buffer.raw


@functools.cache
def compile_source(source: str, architecture: str) -> bytes:
    """Machine code of CUDA ``source``, which may include the files in ``kernels/``.

    Args:
        architecture: as MLX names it, such as ``sm_90``.

    Raises:
        RuntimeError: with the compiler's messages.
    """
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    files = sorted(KERNELS.glob("*.cu"))
    texts = _strings([file.read_text(encoding="utf-8") for file in files])
    names = _strings([file.name for file in files])
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"moxin.cu", len(files), texts, names
    )
    options = _strings([f"--gpu-architecture={architecture}", "--std=c++17"])
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), options):
            log = _read("ProgramLog", program).rstrip(b"\0").decode()
            raise RuntimeError(f"A CUDA kernel does not compile for {architecture}:\n{log}")
        return _read("CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


class Kernel:
    """A compiled kernel with everything but its input arrays."""

    def __init__(self, **options: Any):
        self._options = options

    def __call__(self, *inputs: mx.array) -> list[mx.array]:
        """Its outputs.

        Args:
            inputs: in the order and of the dtypes with which it was prepared.
        """
        return mx.fast.precompiled_cuda_kernel(inputs=inputs, **self._options)


def fill(parameters: str, statements: Sequence[str]) -> str:
    """A C++ function that puts into shared memory what a kernel is told of its arrays.

    Args:
        parameters: its parameters, pointers into shared memory.
        statements: of which a thread each takes one.
    """
    taken = [f"if (threadIdx.x == {index}) {own}" for index, own in enumerate(statements)]
    return f"[&]({parameters}) {{ {' '.join(taken)} }}"


def prepare(
    call: str,
    arguments: Sequence[str],
    inputs: dict[str, mx.Dtype],
    outputs: dict[str, tuple[tuple[int, ...], mx.Dtype]],
    *,
    file: str,
    dtype: mx.Dtype,
    blocks: int,
    threads: int,
    scalars: dict[str, int] | None = None,
    shared_memory: int = 0,
    min_blocks: int = 1,
) -> Kernel:
    """A kernel that is ``moxin::call(arguments)``.

    It takes some 50 us of Python: what launches a kernel many times keeps what this returns.

    Args:
        call: a device function of ``file`` with its template arguments.
        arguments: C++ expressions of the names of ``inputs``, ``outputs`` and ``scalars``.
        inputs: names and dtypes of arrays in row-major order.
        outputs: shapes and dtypes.
        dtype: what ``T`` stands for.
        scalars: integers that the kernel need not be compiled for.
        shared_memory: dynamic, in bytes.
        min_blocks: for as many on a multiprocessor registers are rationed.

    Raises:
        RuntimeError: if the kernel does not compile.
    """
    name = f"moxin_{call.partition('<')[0]}"
    parameters = [f"const {C_TYPES[kind]}* {key}" for key, kind in inputs.items()]
    parameters += [f"{C_TYPES[kind]}* {key}" for key, (_, kind) in outputs.items()]
    parameters += [f"int {key}" for key in scalars or {}]
    source = (
        f'#include "{file}"\n'
        f"using T = {C_TYPES[dtype]};\n"
        f'extern "C" __global__ void __launch_bounds__({threads}, {min_blocks}) '
        f"{name}({', '.join(parameters)}) {{\n  moxin::{call}({', '.join(arguments)});\n}}\n"
    )
    return Kernel(
        name=name,
        compiled_source=compile_source(source, _architecture()),
        output_shapes=[shape for shape, _ in outputs.values()],
        output_dtypes=[kind for _, kind in outputs.values()],
        scalars=list((scalars or {}).values()),
        grid=(blocks * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        shared_memory=shared_memory,
        ensure_row_contiguous=True,
    )
