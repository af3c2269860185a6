"""Measure OpenVLA-tiny: ``python -m openvla_tiny.evaluate``, run in the folder ``tests``.

Stock mlx-vlm converts the checkpoint to every format, and every format acts on the same held-out
tables, through the library's ``predict_action``. All episodes of a kind run side by side. The
formats differ in their weights alone: each is unpacked and computed in float32.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
from moxin_tiny.evaluate import FORMATS, Format, load_unpacked
from tqdm import tqdm

from mlx_vlm_moxin.actions.policy import predict_action

from . import CHECKPOINT, RESULTS
from .drawing import draw
from .environment import MAX_STEPS
from .expert import act
from .layouts import make_table
from .plots import plot_formats
from .table import Table, step
from .tasks import KINDS, Task, make_task

EPISODES = 500
BATCH = 50
# The error of an action is measured on its moves, in the table's units.
MOVES = slice(0, 3)
GROUP_64 = [form for form in FORMATS if form.group_size in (0, 64) or form.mode != "affine"]


def episode(kind: str, index: int, split: str = "test") -> tuple[Table, Task]:
    """Table and task number ``index`` of a kind."""
    table, rng = make_table(split, index)
    return table, make_task(kind, table, split, rng)


def actions(model: nn.Module, processor: Any, tables: list[Table], tasks: list[Task]) -> np.ndarray:
    """What the model does next on each table, ``[B, 7]``."""
    parts = []
    for start in range(0, len(tables), BATCH):
        pictures = [draw(table) for table in tables[start : start + BATCH]]
        texts = [task.instruction for task in tasks[start : start + BATCH]]
        parts.append(predict_action(model, processor, pictures, texts))
    return np.concatenate(parts)


def run_episodes(
    model: nn.Module, processor: Any, episodes: list[tuple[Table, Task]]
) -> tuple[np.ndarray, list[float]]:
    """Act until every task is done or its time is over.

    Returns:
        Whether each episode succeeded, and the mean distance of each action's moves from the
        expert's.
    """
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
    return done, errors


def measure(model: nn.Module, processor: Any, count: int) -> dict[str, Any]:
    """Success rate by kind of task and over all, and the actions' mean error."""
    by_kind, errors = {}, []
    for kind in KINDS:
        done, found = run_episodes(model, processor, [episode(kind, i) for i in range(count)])
        by_kind[kind] = round(float(done.mean()), 4)
        errors += found
    mean = round(float(np.mean([*by_kind.values()])), 4)
    return {"success": mean, "by_kind": by_kind, "action_error": round(float(np.mean(errors)), 5)}


def evaluate(checkpoint: Path, formats: Iterable[Format], count: int, results_file: Path) -> None:
    """Measure every format; the results are written after each."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for form in tqdm(list(formats), unit="format"):
            target = Path(folder) / form.name
            form.convert(checkpoint, target)
            model, processor = load_unpacked(target)
            size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
            found = measure(model, processor, count)
            rows.append({"name": form.name, "bits": form.bits, "bytes": size, **found})
            content = {"episodes_per_kind": count, "formats": rows}
            results_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Evaluate, write results.json and draw results.png."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--episodes", type=int, default=EPISODES, help="per kind of task")
    parser.add_argument("--only", nargs="*", help="names of formats, all by default")
    args = parser.parse_args()
    formats = [form for form in GROUP_64 if not args.only or form.name in args.only]
    evaluate(args.checkpoint, formats, args.episodes, args.results)
    results = json.loads(args.results.read_text(encoding="utf-8"))
    plot_formats(results, args.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
