"""A kernel of ``kernels/``, compiled for one set of sizes and launched by MLX."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from . import cubin_cache, device, module_files
from .errors import require

C_TYPES = {
    mx.bfloat16: "moxin::bfloat16",
    mx.float16: "moxin::float16",
    mx.float32: "float",
    mx.int32: "int",
    mx.uint32: "unsigned int",
}
# Possible values of T in the kernels.
DTYPES = (mx.bfloat16, mx.float16)
# MLX keeps arrays of 8 bytes or less in host memory, where a kernel needs about 10 us to read them,
# so counters are padded to 4 elements.
MIN_SIZE = 4
# Bytes to which arrays in scratch memory are aligned, as in scratch_memory.cuh.
ALIGNMENT = 256


class Kernel:
    """A compiled kernel with everything but its input arrays.

    Building one costs some 50 us of Python, so callers that launch a kernel often keep it.

    Args:
        name: of the kernel in ``cubin``.
        cubin: machine code.
        options: further ones of MLX's function.
    """

    def __init__(self, name: str, cubin: bytes, options: dict[str, Any]):
        self._name, self._cubin, self._options = name, cubin, options

    @functools.cached_property
    def _code(self) -> bytes:
        # Found at the first launch, since kernels are built in other threads than MLX's.
        return module_files.passed_code(self._name, self._cubin)

    def __call__(self, *inputs: mx.array) -> list[mx.array]:
        """Launch the kernel.

        Args:
            inputs: in the order of its parameters, of their dtypes and row-contiguous.

        Returns:
            One array for each of its outputs.
        """
        return mx.fast.precompiled_cuda_kernel(
            name=self._name, compiled_source=self._code, inputs=inputs, **self._options
        )


def counters() -> mx.array:
    """Zeros for the barrier of a kernel whose thread blocks wait for each other (grid.cuh)."""
    return mx.zeros(MIN_SIZE, mx.uint32)


def scratch(*arrays: tuple[int, mx.Dtype]) -> tuple[tuple[int], mx.Dtype]:
    """Shape and dtype of an output that holds scratch ``arrays`` (scratch_memory.cuh).

    Args:
        arrays: number of values and dtype of each.
    """
    sizes = [count * dtype.size for count, dtype in arrays]
    total = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
    return (total // mx.uint32.size,), mx.uint32


def count_array(count: int) -> mx.array:
    """An int32 array whose first element is ``count``; the others are not read."""
    return mx.arange(count, count + MIN_SIZE)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return f"constexpr bool {{}} = {str(value).lower()};"
    if isinstance(value, int):
        return f"constexpr int {{}} = {value};"
    if isinstance(value, float):
        return f"constexpr float {{}} = {value!r}f;"
    return f"using {{}} = {C_TYPES.get(value, value)};"


def source_of(
    entry: str, constants: Mapping[str, Any], macros: Mapping[str, str]
) -> tuple[str, str]:
    """The text that is compiled for ``kernels/<entry>.cu``, and the kernel's name in it.

    Args:
        entry: name of the file and of its kernel.
        constants: what the file expects in namespace ``config``: bool, int and float become
            constants, dtypes and strings (C++ types) become types.
        macros: defined before the file is included.
    """
    lines = [f"  {_literal(value).format(name)}" for name, value in constants.items()]
    body = "\n".join(
        [
            "namespace config {",
            *lines,
            "}",
            *(f"#define {name} {text}" for name, text in macros.items()),
            f'#include "{entry}.cu"\n',
        ]
    )
    # Some versions of MLX keep loaded kernels by name alone.
    name = f"{entry}_{hashlib.sha256(body.encode()).hexdigest()[:16]}"
    header = "".join(f'#include "{name}.cuh"\n' for name in ("dtypes", "weights", "arranged"))
    return f"{header}#define {entry} {name}\n{body}", name


@functools.cache
def compiled(
    entry: str, constants: tuple[tuple[str, Any], ...], macros: tuple[tuple[str, str], ...]
) -> tuple[str, bytes]:
    """Name and machine code of a kernel on MLX's GPU; arguments as in ``source_of``."""
    source, name = source_of(entry, dict(constants), dict(macros))
    return name, cubin_cache.load(source, device.architecture())


def build(
    entry: str,
    constants: Mapping[str, Any],
    inputs: Sequence[mx.Dtype],
    outputs: Mapping[str, tuple[tuple[int, ...], mx.Dtype]],
    scalars: Mapping[str, int],
    *,
    blocks: int,
    threads: int,
    macros: Mapping[str, str] | None = None,
    shared_memory: int = 0,
    waits: bool = False,
) -> Kernel:
    """The kernel of ``kernels/<entry>.cu``, whose parameters are inputs, outputs and scalars.

    Args:
        entry: name of the file and of its kernel.
        constants: what the file expects in namespace ``config``.
        inputs: dtypes, in the order of the parameters.
        outputs: names, shapes and dtypes, in the order of the parameters.
        scalars: names and values of integers, in the order of the parameters.
        blocks: thread blocks of the grid.
        threads: per thread block.
        macros: defined before the file is included.
        shared_memory: dynamic, bytes per thread block.
        waits: whether the thread blocks wait for each other, so that all must run at once.

    Raises:
        RuntimeError: if the kernel does not compile or cannot be loaded.
        UnsupportedError: if the GPU does not have room for the thread blocks.
    """
    name, cubin = compiled(entry, tuple(constants.items()), tuple((macros or {}).items()))
    room = device.resident_blocks(cubin, name, threads, shared_memory)
    require(room >= (blocks if waits else 1), f"{entry} does not fit on this GPU")
    return Kernel(
        name,
        cubin,
        {
            "output_shapes": [shape for shape, _ in outputs.values()],
            "output_dtypes": [dtype for _, dtype in outputs.values()],
            "scalars": list(scalars.values()),
            "grid": (blocks * threads, 1, 1),
            "threadgroup": (threads, 1, 1),
            "shared_memory": shared_memory,
            "ensure_row_contiguous": True,
        },
    )


def fill_table(entries: Mapping[str, str]) -> str:
    """Macro body that stores ``entries`` in ``table``, each by another thread.

    Args:
        entries: initialisers by their index, such as ``[0]``.
    """
    return " ".join(
        f"if (threadIdx.x == {thread}) (table){index} = {{{members}}};"
        for thread, (index, members) in enumerate(entries.items())
    )
