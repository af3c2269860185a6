"""``python -m bench.start CHECKPOINT ...``, run in ``tests``: from the command to the first token.

Runs ``mlx_vlm generate`` with a picture in new processes, and times importing, loading and
the first token apart: cold, with empty folders for compiled kernels, and warm, with those that
the cold process left. A process that reaches ``--limit`` ends with the stacks of its threads, and
the other measurements go on.
"""

import argparse
import faulthandler
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

# Folders where this package, MLX and the driver keep compiled kernels.
CACHES = ("XDG_CACHE_HOME", "MLX_PTX_CACHE_DIR", "CUDA_CACHE_PATH")
TESTS = Path(__file__).parents[1]
STAGE = "stage: "
# Name of the limit's variable, and seconds after which a process ends.
LIMIT, LIMIT_S = "MOXIN_BENCH_LIMIT", 300.0
# Seconds after its limit in which a process can write its stacks.
GRACE_S = 10.0
# What a process has done by the end of each stage.
STAGES = ("imported", "assigned", "loaded", "first token", "second token")
# Characters of a failed command's output in its error.
MAX_OUTPUT = 6000
PROMPT = "What is shown in the picture, and where is it?"


class StartError(RuntimeError):
    """A process that failed or reached its limit.

    Attributes:
        last: the last stage that it finished; ``start`` if none.
    """

    def __init__(self, message: str, last: str):
        super().__init__(message)
        self.last = last


def _reached(stage: str) -> None:
    """Report on standard error that this process has finished ``stage``."""
    line = {"stage": stage, "time": time.time(), "cpu": time.process_time()}
    print(STAGE + json.dumps(line), file=sys.stderr, flush=True)


def _reporting(function: Callable, stage: str) -> Callable:
    """``function``, which finishes ``stage`` when it returns."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        _reached(stage)
        return result

    return call


def child(arguments: list[str]) -> None:
    """``mlx_vlm generate`` that reports each stage."""
    faulthandler.dump_traceback_later(float(os.environ[LIMIT]), exit=True)
    from mlx_vlm.generate import dispatch

    from mlx_vlm_moxin import register

    # Before dispatch's names are replaced below: the plugin changes these functions in place.
    register()
    from mlx_vlm.models.moxin import Model

    _reached("imported")
    stream_generate = dispatch.stream_generate

    @functools.wraps(stream_generate)
    def timed_stream_generate(*args: Any, **kwargs: Any) -> Any:
        for number, result in enumerate(stream_generate(*args, **kwargs)):
            _reached(("first token", "second token")[min(number, 1)])
            if number:
                os._exit(0)  # how the command ends is not measured
            yield result

    Model.load_weights = _reporting(Model.load_weights, "assigned")
    dispatch.load = _reporting(dispatch.load, "loaded")
    dispatch.stream_generate = timed_stream_generate
    sys.argv = ["mlx_vlm.generate", *arguments]
    dispatch.main()
    sys.exit("The answer ended before its second token.")


def run(
    checkpoint: Path, picture: Path, caches: Path, kernels: bool, limit_s: float = LIMIT_S
) -> dict[str, Any]:
    """Seconds of each part of a new process, and of all up to the first token.

    ``assigned`` is the part of loading before weights are read, ``loaded`` the rest. ``cpu`` has
    the seconds of CPU time of all threads up to the end of each stage, ``compiled`` the number of
    files in the folders of compiled kernels afterwards.

    Raises:
        StartError: if the command failed, or took too long; with the stacks of its threads.
    """
    command = [sys.executable, "-m", "bench.start", "--child"]
    options = ["--image", str(picture), "--prompt", PROMPT, "--max-tokens", "8"]
    environment = {name: str(caches / name.lower()) for name in CACHES}
    for folder in environment.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    environment |= {LIMIT: str(limit_s), "HF_HUB_OFFLINE": "1"}
    environment["MLX_VLM_MOXIN_KERNELS"] = str(int(kernels))
    start = time.time()
    process = subprocess.Popen(
        [*command, "--model", str(checkpoint.absolute()), *options],
        cwd=TESTS,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, output = process.communicate(timeout=limit_s + GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        _, output = process.communicate()
    lines = [line for line in output.splitlines() if line.startswith(STAGE)]
    reached = {line["stage"]: line for line in (json.loads(x[len(STAGE) :]) for x in lines)}
    if list(reached) != list(STAGES):
        last = next(reversed(reached), "start")
        raise StartError(f"The command failed after {last}:\n{output[-MAX_OUTPUT:]}", last)
    times = [start, *(reached[stage]["time"] for stage in STAGES)]
    parts = [after - before for before, after in itertools.pairwise(times)]
    return {
        **dict(zip(STAGES, parts)),
        "all": reached["first token"]["time"] - start,
        "cpu": {stage: reached[stage]["cpu"] for stage in STAGES},
        "compiled": {name: _count_files(caches / name.lower()) for name in CACHES},
    }


def _count_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def measure(
    checkpoint: Path, kernels: bool, warm: int, limit_s: float = LIMIT_S
) -> Iterator[tuple[str, dict[str, Any] | StartError]]:
    """``cold`` with the parts of that process, then ``warm`` with those of others with its caches.

    A process that failed gives its error.
    """
    with tempfile.TemporaryDirectory(prefix="moxin-start-") as folder:
        picture, caches = Path(folder) / "picture.png", Path(folder) / "caches"
        Image.effect_noise((640, 480), 90).convert("RGB").save(picture)
        for name in ["cold", *warm * ["warm"]]:
            try:
                yield name, run(checkpoint, picture, caches, kernels, limit_s)
            except StartError as error:
                yield name, error


def main(argv: Sequence[str] | None = None) -> None:
    """The command; the file of ``--json`` always holds the results so far."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["--child"]:
        return child(argv[1:])
    parser = argparse.ArgumentParser("python -m bench.start", description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="see python -m bench.full_size")
    parser.add_argument("--kernels", nargs="+", choices=["on", "off"], default=["on", "off"])
    parser.add_argument("--warm", type=int, default=2, help="processes with full caches")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for each process")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    args = parser.parse_args(argv)
    done: dict[str, Any] = {}
    print("| checkpoint | kernels | caches | imports | loading | first token | all |")
    print("|---|---|---|--:|--:|--:|--:|", flush=True)
    for checkpoint in args.checkpoints:
        for kernels in args.kernels:
            found = done.setdefault(f"{checkpoint.name}, kernels {kernels}", [])
            for caches, parts in measure(checkpoint, kernels == "on", args.warm, args.limit):
                is_error = isinstance(parts, StartError)
                found.append({"caches": caches, **({"error": str(parts)} if is_error else parts)})
                cells = [checkpoint.name, kernels, caches, *_cells(parts)]
                print(f"| {' | '.join(cells)} |", flush=True)
                if args.json:
                    args.json.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    return None


def _cells(parts: dict[str, Any] | StartError) -> list[str]:
    if isinstance(parts, StartError):
        return [f"stopped after: {parts.last}", "", "", ""]
    loading = parts["assigned"] + parts["loaded"]
    return [f"{s:.1f} s" for s in (parts["imported"], loading, parts["first token"], parts["all"])]


if __name__ == "__main__":
    main()
