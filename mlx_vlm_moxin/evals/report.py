"""The table at the end of a run: this model's numbers next to published ones."""

import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from mlx_vlm_moxin import __version__
from mlx_vlm_moxin.checkpoints import messages
from mlx_vlm_moxin.evals.published import PUBLISHED, SOURCE
from mlx_vlm_moxin.evals.run import Result
from mlx_vlm_moxin.evals.tasks import TASKS


@dataclass(frozen=True)
class Row:
    """A task's result and the published number for comparison.

    Attributes:
        task: name of the task.
        result: result of this run.
        location: where its examples came from.
        published: accuracy in per cent; None if none is published.
    """

    task: str
    result: Result
    location: str
    published: float | None

    @property
    def accuracy(self) -> float:
        """The number that the published table shows, in per cent."""
        return 100 * next(iter(self.result.numbers.values()))

    @property
    def error(self) -> float:
        """Standard error of the accuracy (a mean of scores), in percentage points."""
        scores = [answer.score for answer in self.result.answers]
        mean = sum(scores) / len(scores)
        variance = sum((score - mean) ** 2 for score in scores) / len(scores)
        return 100 * math.sqrt(variance / len(scores))

    @property
    def differs(self) -> str:
        """Known differences from the published run, and what is not known about it."""
        task = TASKS[self.task]
        found = len(self.result.answers)
        notes = [] if found == task.examples else [f"{found:,} of {task.examples:,} examples"]
        if task.hub == self.location:
            notes.append(f"copy {task.hub}")
        return "; ".join([*notes, *([task.remark] if task.remark else [])])


def rows(
    results: Mapping[str, Result], locations: Mapping[str, str], published: str | None
) -> list[Row]:
    """A row per task.

    Args:
        published: name of the published row, see ``published``; None for no comparison.
    """
    known = {} if published is None else PUBLISHED[published]
    return [
        Row(name, result, locations[name], known.get(TASKS[name].folder or name))
        for name, result in results.items()
    ]


def print_table(model: str, found: list[Row], published: str | None) -> None:
    """Print accuracies, published ones, and the other numbers of each task."""
    caption = "± is the standard error. Prompts and scores: TRI-ML/vlm-evaluation."
    if published is not None:
        caption += f" Published: {published}, {SOURCE}, which does not name its examples."
    table = Table(title=model, caption=caption)
    for name in ("task", "split", "examples", "accuracy", "published", "ex/s", "other numbers"):
        text = name in ("task", "split", "other numbers")
        table.add_column(name, justify="left" if text else "right")
    for row in found:
        task, result = TASKS[row.task], row.result
        others = list(result.numbers.items())[1:]
        table.add_row(
            task.title,
            task.split,
            f"{len(result.answers):,}",
            f"{row.accuracy:.2f} ± {row.error:.2f}",
            "" if row.published is None else f"{row.published:g}",
            f"{result.answered / result.seconds:.2f}" if result.answered else "",
            "\n".join(f"{name} {_percent(value)}" for name, value in others),
        )
    messages.print_table(table)
    for row in found:
        if row.differs:
            print(f"{TASKS[row.task].title}: {row.differs}")


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f}"


def to_dict(model: str, found: list[Row], published: str | None) -> dict[str, Any]:
    """The contents of the table for ``json``; accuracies in per cent, others as fractions."""
    return {
        "date": datetime.date.today().isoformat(),
        "version": __version__,
        "model": model,
        "published": published,
        "source": SOURCE,
        "tasks": {
            row.task: {
                "accuracy": row.accuracy,
                "standard_error": row.error,
                "published": row.published,
                "split": TASKS[row.task].split,
                "examples": len(row.result.answers),
                "examples_in_full": TASKS[row.task].examples,
                "location": row.location,
                "differs": row.differs,
                "numbers": row.result.numbers,
                "answered_in_this_run": row.result.answered,
                "seconds": row.result.seconds,
            }
            for row in found
        },
    }


def save_json(path: Path, model: str, found: list[Row], published: str | None) -> None:
    """Write the result of ``to_dict`` to ``path``."""
    text = json.dumps(to_dict(model, found, published), indent=2) + "\n"
    path.write_text(text, encoding="utf-8")
