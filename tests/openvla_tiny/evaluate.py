"""Measure OpenVLA-tiny: ``python -m openvla_tiny.evaluate``, run in the folder ``tests``.

Stock mlx-vlm converts the checkpoint to every format, and every format acts on the same held-out
tables, through the library's ``predict_action``. The episodes of a kind run side by side in one
process, and several processes at once. The formats differ only in their weights: each is
dequantised and computed in float32.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from moxin_tiny.evaluate import FORMATS, Format, load_unpacked
from tqdm import tqdm

from mlx_vlm_moxin.actions.policy import predict_action

from . import CHECKPOINT, RESULTS
from .drawing import draw
from .expert import act
from .layouts import make_table
from .plots import plot_formats
from .table import Table, step
from .tasks import KINDS, MAX_STEPS, Task, make_task

EPISODES = 500
BATCH = 250
CACHE_BYTES = 2 * 2**30
# The error of an action is measured on its moves, in the table's units.
MOVES = slice(0, 3)
GROUP_64 = [form for form in FORMATS if form.group_size in (0, 64) or form.mode != "affine"]


def episode(kind: str, index: int, split: str = "test") -> tuple[Table, Task]:
    """Table and task number ``index`` of a kind."""
    table, rng = make_table(split, index)
    return table, make_task(kind, table, split, rng)


def actions(model: nn.Module, processor: Any, tables: list[Table], tasks: list[Task]) -> np.ndarray:
    """The model's next action on each table, ``[B, 7]``."""
    parts = []
    for start in range(0, len(tables), BATCH):
        pictures = [draw(table) for table in tables[start : start + BATCH]]
        texts = [task.instruction for task in tasks[start : start + BATCH]]
        parts.append(predict_action(model, processor, pictures, texts))
    return np.concatenate(parts)


class Outcome(NamedTuple):
    """Results of episodes.

    Attributes:
        done: ``[B]`` bool: whether each task was done in time.
        tables: each table at the end.
        errors: the mean distance of each action's moves from the expert's.
    """

    done: np.ndarray
    tables: list[Table]
    errors: list[float]


def run_episodes(model: nn.Module, processor: Any, episodes: list[tuple[Table, Task]]) -> Outcome:
    """Act until every task is done or its number of steps is reached."""
    tables, tasks = [table for table, _ in episodes], [task for _, task in episodes]
    done = np.zeros(len(tables), bool)
    errors: list[float] = []
    for _ in range(MAX_STEPS):
        running = np.flatnonzero(~done)
        if not len(running):
            break
        chosen = actions(
            model, processor, [tables[i] for i in running], [tasks[i] for i in running]
        )
        for index, action in zip(running, chosen):
            expected = act(tables[index], tasks[index])
            errors.append(float(np.abs(action - expected)[MOVES].mean()))
            tables[index] = step(tables[index], action)
            done[index] = tasks[index].is_done(tables[index])
    return Outcome(done, tables, errors)


def measure(checkpoint: Path, kind: str, count: int, split: str) -> tuple[float, list[float]]:
    """Success rate of a converted checkpoint at a kind of task, and its actions' errors."""
    # Buffers that a process keeps for later are memory that the others, on the same GPU, lack.
    mx.set_cache_limit(CACHE_BYTES)
    model, processor = load_unpacked(checkpoint)
    outcome = run_episodes(model, processor, [episode(kind, i, split) for i in range(count)])
    return round(float(outcome.done.mean()), 4), outcome.errors


def row_of(form: Format, checkpoint: Path, found: dict[str, Future]) -> dict[str, Any]:
    """The entry of a format in results.json."""
    results = {kind: future.result() for kind, future in found.items()}
    by_kind = {kind: rate for kind, (rate, _) in results.items()}
    errors = [error for _, errors in results.values() for error in errors]
    return {
        "name": form.name,
        "bits": form.bits,
        "bytes": sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")),
        "success": round(float(np.mean([*by_kind.values()])), 4),
        "by_kind": by_kind,
        "action_error": round(float(np.mean(errors)), 5),
    }


def evaluate(args: argparse.Namespace, formats: Iterable[Format]) -> None:
    """Measure every format; the results are written after each."""
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(args.workers, get_context("spawn")) as pool,
    ):
        running = []
        for form in formats:
            target = Path(folder) / form.name
            form.convert(args.checkpoint, target)
            found = {
                kind: pool.submit(measure, target, kind, args.episodes, args.split)
                for kind in KINDS
            }
            running.append((form, target, found))
        for each in tqdm(running, unit="format"):
            rows.append(row_of(*each))
            content = {"split": args.split, "episodes_per_kind": args.episodes, "formats": rows}
            args.results.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Evaluate, write results.json and draw results.png."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--episodes", type=int, default=EPISODES, help="per kind of task")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", nargs="*", help="names of formats, all by default")
    args = parser.parse_args()
    formats = [form for form in GROUP_64 if not args.only or form.name in args.only]
    evaluate(args, formats)
    results = json.loads(args.results.read_text(encoding="utf-8"))
    plot_formats(results, args.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
