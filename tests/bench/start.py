"""``python -m bench.start CHECKPOINT ...``, run in ``tests``: from the command to the first token.

Runs ``mlx_vlm generate`` with a picture in new processes, and times importing, loading and
the first token apart: cold, with empty folders for compiled kernels, and warm, with those that
the cold process left.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

# Folders where this package, MLX and the driver keep compiled kernels.
CACHES = ("XDG_CACHE_HOME", "MLX_PTX_CACHE_DIR", "CUDA_CACHE_PATH")
TESTS = Path(__file__).parents[1]
STARTED = "MOXIN_BENCH_STARTED"
TIMES = "times: "
# Name of the limit's variable, and seconds after which a process ends.
LIMIT, LIMIT_S = "MOXIN_BENCH_LIMIT", 300.0
PROMPT = "What is shown in the picture, and where is it?"


def child(arguments: list[str]) -> None:
    """``mlx_vlm generate`` that prints the time of each stage to standard error."""
    times = {"start": float(os.environ[STARTED])}
    faulthandler.dump_traceback_later(float(os.environ[LIMIT]), exit=True)
    from mlx_vlm.generate import dispatch

    from mlx_vlm_moxin import register

    # Before dispatch's names are replaced below: the plugin changes these functions in place.
    register()
    import mlx_vlm.models.moxin  # noqa: F401

    times["imported"] = time.time()
    load, stream_generate = dispatch.load, dispatch.stream_generate

    @functools.wraps(load)
    def timed_load(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        times["loaded"] = time.time()
        return loaded

    @functools.wraps(stream_generate)
    def timed_stream_generate(*args: Any, **kwargs: Any) -> Any:
        for number, result in enumerate(stream_generate(*args, **kwargs)):
            times[("first token", "second token")[min(number, 1)]] = time.time()
            if number:
                # How the command ends is not measured.
                print(TIMES + json.dumps(times), file=sys.stderr, flush=True)
                os._exit(0)
            yield result

    dispatch.load, dispatch.stream_generate = timed_load, timed_stream_generate
    sys.argv = ["mlx_vlm.generate", *arguments]
    dispatch.main()
    sys.exit("The answer ended before its second token.")


def run(
    checkpoint: Path, picture: Path, caches: Path, kernels: bool, limit_s: float = LIMIT_S
) -> dict[str, float]:
    """Seconds of each part of a new process, and of all up to the first token.

    Raises:
        RuntimeError: if the command failed, or took too long; with the stacks of its threads.
    """
    command = [sys.executable, "-m", "bench.start", "--child"]
    options = ["--image", str(picture), "--prompt", PROMPT, "--max-tokens", "8"]
    environment = {name: str(caches / name.lower()) for name in CACHES}
    for folder in environment.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    environment |= {LIMIT: str(limit_s), "HF_HUB_OFFLINE": "1", STARTED: repr(time.time())}
    environment["MLX_VLM_MOXIN_KERNELS"] = str(int(kernels))
    result = subprocess.run(
        [*command, "--model", str(checkpoint.absolute()), *options],
        cwd=TESTS,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith(TIMES)]
    if result.returncode or not lines:
        raise RuntimeError(f"The command failed:\n{result.stderr[-6000:]}")
    times = json.loads(lines[0].removeprefix(TIMES))
    names = list(times)
    parts = {after: times[after] - times[before] for before, after in itertools.pairwise(names)}
    return {**parts, "all": times["first token"] - times["start"]}


def measure(checkpoint: Path, kernels: bool, warm: int) -> dict[str, dict[str, float]]:
    """The cold process, and the fastest of ``warm`` others with its caches."""
    with tempfile.TemporaryDirectory(prefix="moxin-start-") as folder:
        picture, caches = Path(folder) / "picture.png", Path(folder) / "caches"
        Image.effect_noise((640, 480), 90).convert("RGB").save(picture)
        cold = run(checkpoint, picture, caches, kernels)
        others = [run(checkpoint, picture, caches, kernels) for _ in range(warm)]
    return {"cold": cold, "warm": min(others, key=lambda parts: parts["all"])}


def main(argv: Sequence[str] | None = None) -> None:
    """The command; the file of ``--json`` always holds the results so far."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["--child"]:
        return child(argv[1:])
    parser = argparse.ArgumentParser("python -m bench.start", description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="see python -m bench.full_size")
    parser.add_argument("--kernels", nargs="+", choices=["on", "off"], default=["on", "off"])
    parser.add_argument("--warm", type=int, default=2, help="processes with full caches")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    args = parser.parse_args(argv)
    done: dict[str, Any] = {}
    print("| checkpoint | kernels | caches | imports | loading | first token | all |")
    print("|---|---|---|--:|--:|--:|--:|", flush=True)
    for checkpoint in args.checkpoints:
        for kernels in args.kernels:
            found = measure(checkpoint, kernels == "on", args.warm)
            done[f"{checkpoint.name}, kernels {kernels}"] = found
            for caches, parts in found.items():
                cells = [checkpoint.name, kernels, caches]
                names = ("imported", "loaded", "first token", "all")
                cells += [f"{parts[name]:.1f} s" for name in names]
                print(f"| {' | '.join(cells)} |", flush=True)
            if args.json:
                args.json.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
