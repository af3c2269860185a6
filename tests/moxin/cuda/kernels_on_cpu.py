"""Kernels without tensor cores, compiled by a C++ compiler and run on the CPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_vlm.models.moxin.cuda import kernel, nvrtc

COMPILER = shutil.which("c++") or shutil.which("g++")
# A thread block has one thread here, so it never waits.
SHIMS = """
#include <algorithm>
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __syncthreads()
using std::max, std::min;
struct { unsigned int x; } blockIdx, threadIdx;
"""


class KernelsOnCpu:
    """A replacement for ``kernel.build``; callers must use one thread per block.

    Args:
        folder: for the compiled kernels.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._libraries = {}

    def _function(self, entry, constants):
        key = entry, *constants.items()
        if key not in self._libraries:
            name = f"{entry}_{len(self._libraries)}"
            source, target = self._folder / f"{name}.cpp", self._folder / f"{name}.so"
            lines = [kernel._literal(value).format(name) for name, value in constants.items()]
            source.write_text(
                f"{SHIMS} namespace config {{ {' '.join(lines)} }}\n"
                f'#include "{entry}.cu"\n'
                'extern "C" void set_block(int block) { blockIdx.x = block; }\n'
            )
            options = "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{nvrtc.KERNELS}"
            subprocess.run([COMPILER, *options, "-o", target, source], check=True)
            self._libraries[key] = ctypes.CDLL(str(target))
        library = self._libraries[key]
        return getattr(library, entry), library.set_block

    def __call__(self, entry, constants, inputs, outputs, scalars, *, blocks, threads):
        assert threads == 1
        function, set_block = self._function(entry, constants)

        def run(*arrays):
            assert [array.dtype for array in arrays] == list(inputs)
            given = [np.array(array) for array in arrays]
            results = [mx.zeros(shape, dtype) for shape, dtype in outputs.values()]
            results = [np.array(result) for result in results]
            pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*given, *results)]
            for block in range(blocks):
                set_block(block)
                function(*pointers, *map(ctypes.c_int, scalars.values()))
            return [mx.array(result) for result in results]

        return run
