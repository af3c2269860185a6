"""``python -m bench.conversion FOLDER``, run in ``tests``: conversion compared with reading.

Writes a native fp32 checkpoint with Moxin's towers and projector and some of its decoder's
layers, with random weights, and converts it in new processes. Each conversion follows a reading
of the same file; the page cache is emptied of it before both.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from mlx.utils import tree_flatten
from support import TINY
from torch_files import Tensor, tensor, write_pt

from mlx_vlm_moxin import register

from .peers.sizes import SMALL, Sizes

CHECKPOINT = "checkpoints/latest-checkpoint.pt"
# Copied from a checkpoint of the tests: its tokenizer.
PAD_TOKEN_ID, VOCAB_SIZE = 512, 576
PROJECTOR = {"fc1": "projector.0", "fc2": "projector.2", "fc3": "projector.4"}
BLOCK = 16 << 20
INTERVAL_S = 0.02
TARGETS = {"8": ["-q", "--q-bits", "8"], "4": ["-q", "--q-bits", "4"], "bf16": []}


def write_source(folder: Path, sizes: Sizes, layers: int) -> None:
    """``folder/native`` and the files of its language model in ``folder/llm``."""
    register()
    from mlx_vlm.models.moxin import Model

    text = replace(sizes.config.text_config, num_hidden_layers=layers, vocab_size=VOCAB_SIZE)
    text = replace(text, layer_types=None)
    ids = {"pad_token_id": PAD_TOKEN_ID, "image_token_index": PAD_TOKEN_ID + 1}
    model = Model(replace(sizes.config, text_config=text, **ids))
    values = 0.02 * np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, array in tree_flatten(model.parameters()):
        part, name = _native_name(name)
        shape = array.shape
        if name.endswith("patch_embed.proj.weight"):
            shape = (shape[0], shape[3], *shape[1:3])
        parts.setdefault(part, {})[name] = tensor(np.resize(values, shape))
    native = folder / "native"
    write_pt(native / CHECKPOINT, {"model": parts})
    shutil.copy(TINY / "native/config.json", native)
    shutil.copytree(TINY / "hub/llm", folder / "llm")
    config = json.loads((folder / "llm/config.json").read_text(encoding="utf-8"))
    config |= {key: getattr(text, key) for key in config if hasattr(text, key)}
    config |= {"model_type": "mistral", "vocab_size": PAD_TOKEN_ID}
    (folder / "llm/config.json").write_text(json.dumps(config), encoding="utf-8")


def _native_name(name: str) -> tuple[str, str]:
    """Part of a native checkpoint, and the name within it, for one of our tensor names."""
    head, rest = name.split(".", 1)
    if head == "language_model":
        return "llm_backbone", f"llm.{rest}"
    if head == "multi_modal_projector":
        layer, kind = rest.split(".")
        return "projector", f"{PROJECTOR[layer]}.{kind}"
    tower, rest = rest.split(".", 1)
    return "vision_backbone", f"{tower}_featurizer.{rest}"


def forget(path: Path) -> None:
    """Remove a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_seconds(path: Path) -> float:
    """Seconds needed to read a file from the disk."""
    forget(path)
    buffer = bytearray(BLOCK)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def convert(folder: Path, options: Sequence[str]) -> dict[str, float]:
    """Seconds and peak memory in GB of a conversion, including the start of Python."""
    forget(folder / "native" / CHECKPOINT)
    target = folder / "converted"
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "mlx_vlm_moxin", "convert", "--hf-path", folder / "native"]
    command += ["--mlx-path", target, "--llm", folder / "llm", "--no-verify", "--quiet", *options]
    start = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([*map(str, command)], env=environment, stderr=subprocess.PIPE)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _peak_gb(process.pid))
        time.sleep(INTERVAL_S)
    elapsed = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"The conversion failed:\n{process.stderr.read().decode()[-1500:]}")
    process.stderr.close()
    shutil.rmtree(target)
    return {"seconds": elapsed, "peak_gb": peak}


def _peak_gb(pid: int) -> float:
    """Peak memory of a process in GB; 0 if it has just ended."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(kilobytes[0]) / 1e9 if kilobytes else 0.0


def main(argv: Sequence[str] | None = None) -> None:
    """The command; the file of ``--json`` always holds the results so far."""
    parser = argparse.ArgumentParser("python -m bench.conversion", description=__doc__)
    parser.add_argument("folder", type=Path, help="gets the checkpoint, which is kept")
    parser.add_argument("--layers", type=int, default=6, help="of the decoder (default: 6)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--to", nargs="+", choices=TARGETS, default=["8", "4"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that it runs")
    args = parser.parse_args(argv)
    source = args.folder / "native" / CHECKPOINT
    if not source.exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        write_source(args.folder, SMALL if args.small else Sizes(), args.layers)
    done: dict[str, Any] = {"source_gb": source.stat().st_size / 1e9, "rounds": []}
    cores = len(os.sched_getaffinity(0))
    print(f"{source}: {done['source_gb']:.2f} GB, {cores} cores", flush=True)
    for _ in range(args.rounds):
        for target in args.to:
            read = read_seconds(source)
            found = {"to": target, "read": read, **convert(args.folder, TARGETS[target])}
            done["rounds"].append(found)
            print(" ".join(f"{name} {_short(value)}" for name, value in found.items()), flush=True)
            if args.json:
                args.json.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    reading = median(each["read"] for each in done["rounds"])
    for target in args.to:
        chosen = [each for each in done["rounds"] if each["to"] == target]
        seconds = median(each["seconds"] for each in chosen)
        peak = max(each["peak_gb"] for each in chosen)
        print(
            f"to {target}: {seconds:.1f} s, {seconds / reading:.2f} times reading alone "
            f"({reading:.1f} s), {peak:.2f} GB at most"
        )


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
