"""``python -m bench.llama_cpp LIBRARIES``, run in ``tests``: llama.cpp on the decoder's sizes.

Writes a GGUF of random weights with PyPI's ``gguf`` and measures through llama.cpp's C interface:
a prompt of 288 tokens, and decoding one and eight rows at a context of 300. LIBRARIES is a folder
with its shared libraries, for example from npm's ``@node-llama-cpp/linux-x64-cuda``.
"""

import argparse
import ctypes
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .peers.sizes import SMALL, Sizes
from .random_gguf import write_gguf

# What n_ctx, n_batch, n_ubatch and n_seq_max are set to unless changed: the structure's start.
CONTEXT_DEFAULTS = (512, 2048, 512, 1)
# llama_model_params begins with two pointers; n_gpu_layers is the fifth number of four bytes.
GPU_LAYERS = 4
ALL_LAYERS = 999
ERROR_LEVEL = 4
# Defaults of four enumerations of llama_context_params, flash_attn_type last, and of its truth
# values from embeddings to kv_unified.
AUTOMATIC = (0xFFFFFFFF,) * 4
TRUTH = bytes((0, 1, 1, 1, 1, 0))
# Larger than either structure, whose ends differ between versions. Both are a function's last
# argument and passed on the stack, where a callee reads as much as it knows of.
Settings = ctypes.c_uint32 * 128


class Parameters(ctypes.Structure):
    """``llama_model_params`` or ``llama_context_params``, as numbers of four bytes."""

    _fields_ = [("values", Settings)]


class Batch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _log(level: int, text: bytes, _: int | None) -> None:
    """Errors, and on how many layers a GPU works."""
    if level == ERROR_LEVEL or b"offloaded" in text:
        print(text.decode(errors="replace").rstrip(), file=sys.stderr, flush=True)


class Llama:
    """A model in llama.cpp, and a context of ``rows`` sequences.

    Raises:
        RuntimeError: if a library is missing or has other structures, or a call fails.
        OSError: if a library cannot be loaded.
    """

    def __init__(
        self,
        libraries: Path,
        model: Path,
        rows: int,
        context: int,
        flash_attention: bool = True,
        unified: bool = False,
        threads: int = 1,
    ):
        self._library = self._load(libraries)
        path = str(model).encode()
        parameters = self._library.llama_model_default_params()
        parameters.values[GPU_LAYERS] = ALL_LAYERS
        self._model = self._library.llama_model_load_from_file(path, parameters)
        parameters = self._library.llama_context_default_params()
        if tuple(parameters.values[:4]) != CONTEXT_DEFAULTS:
            raise RuntimeError(f"unknown llama_context_params: {parameters.values[:4]}")
        parameters.values[:4] = (rows * context, 2048, 512, rows)
        if not flash_attention:
            values = tuple(parameters.values)
            (start,) = [i for i in range(len(values) - 3) if values[i : i + 4] == AUTOMATIC]
            parameters.values[start + 3] = 0
        if unified:
            raw = bytes(parameters.values)
            ctypes.memset(ctypes.addressof(parameters) + raw.index(TRUTH) + len(TRUTH) - 1, 1, 1)
        self._context = self._model and self._library.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp could not load {model}")
        self._library.llama_set_n_threads(self._context, threads, threads)
        self._rows = rows
        self._batch = self._library.llama_batch_init(2048, 0, rows)

    @staticmethod
    def _load(libraries: Path) -> Any:
        def open_one(name: str) -> ctypes.CDLL:
            paths = [*libraries.glob(name)]
            if len(paths) != 1:
                raise RuntimeError(f"{len(paths)} files {name} in {libraries}: 1 is needed")
            return ctypes.CDLL(str(paths[0]), mode=ctypes.RTLD_GLOBAL)

        open_one("libggml-base.so").ggml_log_set(_log, None)
        open_one("libggml.*so").ggml_backend_load_all_from_path(str(libraries).encode())
        library = open_one("libllama.*so")
        pointer = ctypes.c_void_p
        library.llama_model_default_params.restype = Parameters
        library.llama_context_default_params.restype = Parameters
        for name, arguments, result in (
            ("llama_model_load_from_file", [ctypes.c_char_p, Parameters], pointer),
            ("llama_init_from_model", [pointer, Parameters], pointer),
            ("llama_get_memory", [pointer], pointer),
            ("llama_memory_clear", [pointer, ctypes.c_bool], None),
            ("llama_batch_init", [ctypes.c_int32] * 3, Batch),
            ("llama_decode", [pointer, Batch], ctypes.c_int32),
            ("llama_set_n_threads", [pointer, ctypes.c_int32, ctypes.c_int32], None),
            ("llama_synchronize", [pointer], None),
            ("llama_free", [pointer], None),
            ("llama_model_free", [pointer], None),
        ):
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
        library.llama_log_set(_log, None)
        library.llama_backend_init()
        return library

    def clear(self) -> None:
        """Forget all tokens."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def decode(self, position: int, length: int, rows: Sequence[int]) -> None:
        """Compute ``length`` tokens of each of ``rows``, to the logits of the last one."""
        count = 0
        for row in rows:
            for index in range(length):
                self._batch.token[count] = 3 + (7 * count + position) % 500
                self._batch.pos[count] = position + index
                self._batch.n_seq_id[count] = 1
                self._batch.seq_id[count][0] = row
                self._batch.logits[count] = index == length - 1
                count += 1
        self._batch.n_tokens = count
        status = self._library.llama_decode(self._context, self._batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        self._library.llama_synchronize(self._context)

    def close(self) -> None:
        """Free the context and the model."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def decode_rate(self, context: int, tokens: int) -> float:
        """Tokens per second of all rows at ``context`` tokens, after four steps."""
        self.clear()
        rows = range(self._rows)
        for row in rows:
            self.decode(0, context, [row])
        for step in range(4 + tokens):
            if step == 4:
                start = time.perf_counter()
            self.decode(context + step, 1, rows)
        return self._rows * tokens / (time.perf_counter() - start)

    def prompt_ms(self, length: int) -> float:
        """Milliseconds for a prompt."""
        self.clear()
        start = time.perf_counter()
        self.decode(0, length, [0])
        return 1e3 * (time.perf_counter() - start)


def measure(
    libraries: Path, model: Path, rows: int, sizes: Sizes, rounds: int, **options: int
) -> dict[str, list[float]]:
    """Values of each round after one that warms up, by what was measured.

    A prompt is measured where decoding starts after one that is as long.
    """
    found: dict[str, list[float]] = {}
    context = sizes.context + sizes.tokens + 8
    llama = Llama(libraries, model, rows, context, **options)
    for number in range(1 + rounds):
        values = {f"decode, batch {rows}, tokens/s": llama.decode_rate(sizes.context, sizes.tokens)}
        if rows == 1 and sizes.context >= sizes.short_prompt:
            values[f"prompt of {sizes.short_prompt}, ms"] = llama.prompt_ms(sizes.short_prompt)
        for name, value in values.items():
            found.setdefault(name, []).extend([value] if number else [])
    llama.close()
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """The command; ``--json`` holds what was measured so far."""
    parser = argparse.ArgumentParser("python -m bench.llama_cpp", description=__doc__)
    parser.add_argument("libraries", type=Path, help="folder with libllama*.so and the others")
    parser.add_argument("--kinds", nargs="+", choices=["Q8_0", "Q4_0"], default=["Q8_0", "Q4_0"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--context", type=int, help="tokens before those that are decoded")
    parser.add_argument("--tokens", type=int, help="tokens that are decoded in a round")
    parser.add_argument("--threads", type=int, default=1, help="1 where a GPU has the weights")
    parser.add_argument("--no-flash-attention", action="store_true")
    parser.add_argument("--unified", action="store_true", help="one cache for all rows")
    parser.add_argument("--folder", type=Path, help="keep the GGUF files here, and reuse them")
    parser.add_argument("--write-only", action="store_true", help="only write them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    args = parser.parse_args(argv)
    try:
        run(args)
    except (ImportError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}"[:500])


def run(args: argparse.Namespace) -> None:
    """Write the files, measure, print."""
    sizes = SMALL if args.small else Sizes()
    changed = {"context": args.context, "tokens": args.tokens}
    sizes = replace(sizes, **{name: value for name, value in changed.items() if value})
    done: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="moxin-gguf-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for kind in args.kinds:
            path = folder / f"{kind}.gguf"
            if not path.exists():
                partial = path.with_suffix(".part")
                write_gguf(partial, kind, sizes)
                partial.rename(path)
            if args.write_only:
                continue
            options = {"flash_attention": not args.no_flash_attention, "unified": args.unified}
            options["threads"] = args.threads
            for rows in args.batches:
                found = measure(args.libraries, path, rows, sizes, args.rounds, **options)
                done.setdefault(kind, {}).update(found)
                for name, values in found.items():
                    spread = f"({min(values):.4g} to {max(values):.4g})"
                    print(f"{kind}, {name}: {statistics.median(values):.4g} {spread}", flush=True)
                if args.json:
                    args.json.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
