"""``python -m mlx_vlm_moxin.evals.speed``: examples per second of the tasks, by batch size.

Runs the evaluation's code on generated examples: JPEG files of 640 x 480 pixels with one
question each. Questions and answers are as long as in the data sets, but no data set is needed.
"""

import argparse
import dataclasses
import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
from PIL import Image
from tqdm import tqdm

from mlx_vlm_moxin.bench import models
from mlx_vlm_moxin.bench.machine import device_name
from mlx_vlm_moxin.checkpoints.messages import print_error
from mlx_vlm_moxin.evals.answering import Answering
from mlx_vlm_moxin.evals.answers_file import AnswersFile
from mlx_vlm_moxin.evals.data.tallyqa import CHOICES
from mlx_vlm_moxin.evals.example import Example
from mlx_vlm_moxin.evals.run import Run
from mlx_vlm_moxin.evals.stand_in import stand_in_processor
from mlx_vlm_moxin.evals.tasks import TASKS
from mlx_vlm_moxin.library.load import load

# Pixels of each picture.
WIDTH = 640
HEIGHT = 480
# A typical question of each task.
QUESTIONS = {
    "vsr": "The cat is beneath the dining table.",
    "pope": "Is there a traffic light in the image?",
    "gqa": "What color is the shirt that the man to the left of the bench is wearing?",
    "vizwiz": "What is the name of this product, and is it past its date?",
    "refcoco+": "woman in white shirt holding the umbrella",
    "tallyqa": "How many people are standing on the platform?",
    "ocid-ref": "the blue cereal box behind the green bowl on the left",
}
# Maximum tokens of a generated answer: words, or a box of four numbers.
ANSWER_TOKENS = {"gqa": 3, "vizwiz": 3, "refcoco+": 22, "ocid-ref": 22}


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Write ``count`` pictures that need as much time to decode and resize as photographs."""
    paths = []
    for index in range(count):
        values = np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        path = folder / f"{index}.jpg"
        Image.fromarray(values).resize((WIDTH, HEIGHT)).save(path, quality=90)
        paths.append(path)
    return paths


def generated_examples(task: str, pictures: Sequence[Path]) -> list[Example]:
    """A question of ``task`` about each picture."""
    choices = CHOICES if task == "tallyqa" else ()
    # Answers are compared with this text; the score does not matter here.
    answer = [0.1, 0.1, 0.9, 0.9] if task in ("refcoco+", "ocid-ref") else "A"
    return [
        Example(str(number), QUESTIONS[task], answer, path, path.name, "", choices)
        for number, path in enumerate(pictures)
    ]


def examples_per_second(
    model: nn.Module, processor: Any, task: str, pictures: Sequence[Path], batch_size: int
) -> float:
    """Speed of one task from picture files to lines of answers, without the first batch.

    Args:
        pictures: at least one batch to warm up and one to measure.
    """
    # Leave out scores and summaries, which depend on the data sets.
    settings = dataclasses.replace(TASKS[task], score=lambda *_: 0.0, summarise=lambda _: {})
    with tempfile.TemporaryDirectory(prefix="moxin-speed-") as folder:
        file = AnswersFile(Path(folder) / "answers.jsonl")
        tokens = ANSWER_TOKENS.get(task, 1)
        run = Run(Answering(model, processor), "", "", file, batch_size, True, tokens)
        examples = generated_examples(task, pictures)
        run(task, settings, examples[:batch_size])
        result = run(task, settings, examples)
    return result.answered / result.seconds


def measure(
    model: nn.Module,
    processor: Any,
    tasks: Sequence[str],
    batch_sizes: Sequence[int],
    count: int,
    each: Callable[[dict[str, dict[int, float]]], None] = lambda speeds: None,
) -> dict[str, dict[int, float]]:
    """Examples per second by task and batch size, over ``count`` examples or two batches each.

    Args:
        each: called after every figure with all figures so far.
    """
    speeds: dict[str, dict[int, float]] = {task: {} for task in tasks}
    with tempfile.TemporaryDirectory(prefix="moxin-speed-") as folder:
        pictures = write_pictures(Path(folder), max(count, *batch_sizes) + max(batch_sizes))
        cases = [(task, size) for task in tasks for size in batch_sizes]
        for task, size in tqdm(cases, desc="Speed", disable=None):
            chosen = pictures[: max(count, size) + size]
            speeds[task][size] = examples_per_second(model, processor, task, chosen, size)
            each(speeds)
    return speeds


def table(name: str, speeds: dict[str, dict[int, float]]) -> str:
    """Markdown with a row per task and a column per batch size; empty if not yet measured."""
    sizes = list(next(iter(speeds.values())))
    head = ["examples per second", "tokens of an answer", *(f"batch {size}" for size in sizes)]
    lines = [f"{name}, {device_name()}, {datetime.date.today().isoformat()}:", ""]
    lines += [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    for task, found in speeds.items():
        tokens = str(ANSWER_TOKENS.get(task, "none, one prefill"))
        cells = [
            TASKS[task].title,
            tokens,
            *(f"{found[size]:.3g}" if size in found else "" for size in sizes),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_vlm_moxin.evals.speed",
        description="Examples per second of each task on this machine.",
    )
    add = parser.add_argument
    add("--model", help="checkpoint or Hub id (default: random weights in Moxin-7B's sizes)")
    add("--bits", type=int, default=16, choices=[16, 8, 4], help="width of the decoder's weights")
    add("--tasks", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), metavar="TASK")
    add("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], metavar="B")
    add("--examples", type=int, default=64, metavar="N", help="examples per figure")
    add("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return parser


def _model(args: argparse.Namespace) -> tuple[nn.Module, Any]:
    bits = None if args.bits == 16 else args.bits
    if args.model is not None:
        return load(args.model, bits)
    model = models.random_model(args.bits)
    return model, stand_in_processor(model.config)


def _save(path: Path | None, speeds: dict[str, dict[int, float]]) -> None:
    """Write the figures after each one, so that an interrupted run keeps them."""
    if path is not None:
        path.write_text(json.dumps(speeds, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Bad input ends with one line on standard error and status 1.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if min([*args.batch_sizes, args.examples]) < 1:
        parser.error("--batch-sizes and --examples must be above 0")
    try:
        model, processor = _model(args)
        examples = args.tasks, args.batch_sizes, args.examples
        speeds = measure(model, processor, *examples, lambda speeds: _save(args.json, speeds))
        weights = "bf16" if args.bits == 16 else f"{args.bits} bits"
        name = f"{Path(args.model).name if args.model else 'Random weights'}, {weights}"
        print(table(name, speeds))
    except (OSError, ValueError) as error:
        return print_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
