"""Kernels compiled by a C++ compiler and run on the CPU, with warps, barriers and tensor cores."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
from kernels_on_cpu import COMPILER
from mlx_vlm.models.moxin.cuda import kernel, nvrtc

HEADER = Path(__file__).with_name("ptx_on_cpu.h")
ASM = re.compile(r"\basm\s*(?:volatile)?\s*\(((?:[^;\"]|\"[^\"]*\")*)\);")
# This instruction names every register, so its text is a macro. Here it is a function.
WGMMA = re.compile(r"#define (MOXIN_WGMMA|MOXIN_MULTIPLY_TILES).*#undef \1", re.DOTALL)
WGMMA_OPERANDS = {
    "MOXIN_WGMMA": ("multiply_wide", "float* sums, const unsigned int* a, unsigned long long b"),
    "MOXIN_MULTIPLY_TILES": (
        "multiply_tiles",
        "float (&sums)[SUMS], unsigned long long a, unsigned long long b",
    ),
}
SHARED = "extern __shared__ __align__(128) unsigned char shared[];"


def _operands(text):
    """Expressions of ``"constraint"(expression), ...``."""
    found, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        if letter == "(":
            depth += 1
            start = at + 1 if depth == 1 else start
        elif letter == ")":
            depth -= 1
            if not depth:
                found.append(text[start:at])
    return found


def _call(match):
    """The function in ptx_on_cpu.h for an ``asm`` statement."""
    body = re.sub(r"//[^\n]*", "", match[1])
    template = "".join(re.findall(r'^\s*((?:"[^"]*"\s*)+)', body)).replace('"', "")
    if not template.strip():
        return ";"
    template = re.sub(r"^\s*{\s*\.reg[^;]*;", "", template)
    name = re.sub(r"\W+", "_", template.split()[0]).strip("_")
    if f" {name}(" not in HEADER.read_text() and f" {name} =" not in HEADER.read_text():
        name = "unsupported"
    operands = body[re.match(r'^\s*(?:"[^"]*"\s*)+', body).end() :]
    return f"ptx::{name}({', '.join(_operands(operands))});"


def _wgmma(match):
    """The functions in place of a macro."""
    name, operands = WGMMA_OPERANDS[match[1]]
    return "".join(
        f"template <> void {name}<{kind}>({operands}) {{\n"
        f"  multiply_warpgroup<{form}, WGMMA_COLUMNS>(sums, a, b);\n}}\n"
        for kind, form in (("bfloat16", "Bf16"), ("float16", "F16"))
    )


def _translate(text):
    text = WGMMA.sub(_wgmma, text)
    text = ASM.sub(_call, text).replace(
        SHARED, "alignas(128) inline thread_local unsigned char shared[SHARED];"
    )
    return re.sub(r"#pragma unroll.*", "", text)


def _bytes(array):
    """A copy of an array's bytes for a kernel to read and write."""
    mx.eval(array)
    kind = {2: mx.uint16, 4: mx.uint32}[array.itemsize]
    return np.array(mx.contiguous(array).view(kind))


class ThreadsOnCpu:
    """A replacement for ``kernel.build``.

    Args:
        folder: for the compiled kernels; another one with the same ``blocks`` may use it too.
        blocks: of the grid, instead of as many as the GPU has multiprocessors; None for a kernel
            whose number of blocks depends on its work alone.

    Attributes:
        arrays: bytes of the last launch's inputs, after it.
    """

    def __init__(self, folder: Path, blocks: int | None = None):
        self._folder, self._blocks = folder, blocks
        self.arrays: list[np.ndarray] = []

    def _compile(self, entry, constants, macros, count, blocks, threads):
        source, name = kernel.source_of(entry, constants, macros)
        file, library = self._folder / f"{name}.cpp", self._folder / f"{name}.so"
        if not library.exists():
            self._build(source, name, count, blocks, threads, file, library)
        # Loaded from a file of its own, so that kernels of two of these run at the same time.
        copy = shutil.copy(library, self._folder / f"{name}_{id(self)}.so")
        return ctypes.CDLL(str(copy)).launch

    def _build(self, source, name, count, blocks, threads, file, library):
        for path in nvrtc.KERNELS.glob("*.cu*"):
            (self._folder / path.name).write_text(_translate(path.read_text()))
        arguments = ", ".join(f"Argument{{arguments[{index}]}}" for index in range(count))
        file.write_text(
            f'#include "{HEADER}"\n{source}\n#include "grid.cuh"\n'  # which has `shared`
            "static void** arguments;\n"
            "unsigned char* shared_memory() { return moxin::shared; }\n"
            f"void run_thread() {{ {name}({arguments}); }}\n"
            'extern "C" __attribute__((visibility("default"))) void launch(void** given) {\n'
            f"  arguments = given;\n  run_grid({blocks}, {threads});\n}}\n"
        )
        # Hidden, since libraries would share variables of inline functions, whose sizes differ.
        hidden = "-fvisibility=hidden", f"-I{self._folder}"
        options = "-std=c++20", "-O1", "-w", "-fpermissive", "-shared", "-fPIC", "-pthread"
        # Where it is the default, it ends programs that jump to another stack.
        options += ("-U_FORTIFY_SOURCE",)
        subprocess.run([COMPILER, *options, *hidden, "-o", library, file], check=True)

    def __call__(
        self, entry, constants, inputs, outputs, scalars, *, blocks, threads, macros=None, **_
    ):
        count = len(inputs) + len(outputs) + len(scalars)
        blocks = self._blocks or blocks
        launch = self._compile(entry, constants, macros or {}, count, blocks, threads)

        def run(*arrays):
            assert [array.dtype for array in arrays] == list(inputs)
            self.arrays = [_bytes(array) for array in arrays]
            # NaN where the kernel writes nothing.
            results = [_bytes(mx.full(shape, mx.nan, kind)) for shape, kind in outputs.values()]
            numbers = [np.array([value], np.int32) for value in scalars.values()]
            given = [array.ctypes.data for array in (*self.arrays, *results, *numbers)]
            launch((ctypes.c_void_p * count)(*given))
            kinds = [kind for _, kind in outputs.values()]
            return [mx.array(result).view(kind) for result, kind in zip(results, kinds)]

        return run
