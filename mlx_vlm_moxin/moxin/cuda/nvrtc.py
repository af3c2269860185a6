"""NVIDIA's run-time compiler: the kernels in ``kernels/`` to machine code.

``mx.fast.cuda_kernel`` includes MLX's headers in every kernel, and each process parses them again,
1 to 2 s per kernel. Compiled here, without these headers, most kernels take 0.1 to 0.2 s.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

KERNELS = Path(__file__).with_name("kernels")
VERSIONS = (13, 12)
OPTIONS = ("--std=c++17",)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiler, which MLX's CUDA backend has already loaded; None without that backend."""
    for version in VERSIONS:
        try:
            return ctypes.CDLL(f"libnvrtc.so.{version}")
        except OSError:
            continue
    return None


def _check(code: int, call: str) -> None:
    if code:
        describe = library().nvrtcGetErrorString
        describe.restype = ctypes.c_char_p
        raise RuntimeError(f"{call}: {describe(code).decode()}")


@functools.cache
def version() -> tuple[int, int]:
    """The compiler's major and minor version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return major.value, minor.value


@functools.cache
def sources() -> dict[str, str]:
    """Names and texts of all files in ``kernels/``."""
    files = sorted(path for path in KERNELS.iterdir() if path.suffix in (".cu", ".cuh"))
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def _strings(texts: Sequence[str]) -> ctypes.Array:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _read(what: str, program: ctypes.c_void_p) -> bytes:
    """The result of ``nvrtcGet<what>``."""
    size = ctypes.c_size_t()
    code = getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    _check(code, f"nvrtcGet{what}Size")
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(library(), f"nvrtcGet{what}")(program, buffer), f"nvrtcGet{what}")
    return buffer.raw


def compile_source(source: str, architecture: str) -> bytes:
    """Machine code (cubin) of CUDA ``source``, which may include the files in ``kernels/``.

    Args:
        source: the text of a .cu file.
        architecture: in MLX's form, such as ``sm_90``.

    Raises:
        RuntimeError: with the compiler's messages.
    """
    nvrtc, program = library(), ctypes.c_void_p()
    texts, names = _strings(list(sources().values())), _strings(list(sources()))
    code = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"moxin.cu", len(sources()), texts, names
    )
    _check(code, "nvrtcCreateProgram")
    options = _strings([f"--gpu-architecture={architecture}", *OPTIONS])
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), options):
            log = _read("ProgramLog", program).rstrip(b"\0").decode()
            raise RuntimeError(f"A CUDA kernel does not compile for {architecture}:\n{log}")
        return _read("CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
