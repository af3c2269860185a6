"""Compares two checkpoints on the same examples, such as a model before and after quantising."""

import gc
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
from rich.table import Table

from mlx_vlm_moxin.checkpoints.messages import print_table
from mlx_vlm_moxin.evals.answering import Answering
from mlx_vlm_moxin.evals.answers_file import AnswersFile
from mlx_vlm_moxin.evals.example import Answer, Example
from mlx_vlm_moxin.evals.run import Result, Run
from mlx_vlm_moxin.evals.tasks import TASKS
from mlx_vlm_moxin.evals.weights_id import weights_id
from mlx_vlm_moxin.library.load import load

_HEAD = ["Benchmark", "Examples", "Source", "This model", "Change", "Same answers"]


def answer_all(
    checkpoint: Path,
    examples: Mapping[str, Sequence[Example]],
    file: AnswersFile,
    batch_size: int = 1,
    quiet: bool = False,
) -> dict[str, Result]:
    """A checkpoint's results by task; the model is in memory only during the call.

    Args:
        examples: examples by task.
        file: previous answers; new ones are appended.

    Raises:
        OSError, ValueError: if the model cannot be loaded, one of a task's words is not a
            single token, or a picture cannot be read.
    """
    model, processor = load(checkpoint)
    run = Run(
        Answering(model, processor), str(checkpoint), weights_id(model), file, batch_size, quiet
    )
    results = {name: run(name, TASKS[name], chosen) for name, chosen in examples.items()}
    del run, model, processor
    gc.collect()
    mx.clear_cache()
    return results


@dataclass(frozen=True)
class TaskCost:
    """Comparison of a result and its source on one task, in per cent or percentage points.

    Attributes:
        title: the task's title.
        examples: number of examples that both answered.
        source, result: accuracies.
        change: the result's accuracy minus the source's.
        error: standard error of the change, from the changes of single examples.
        same: share of examples to which both gave the same answer.
    """

    title: str
    examples: int
    source: float
    result: float
    change: float
    error: float
    same: float


def _accuracy(result: Result) -> float:
    return 100 * next(iter(result.numbers.values()))


def _standard_error(first: Sequence[Answer], second: Sequence[Answer]) -> float:
    """Standard error of the mean change of score, in points, over paired examples."""
    changes = [after.score - before.score for before, after in zip(first, second)]
    mean = sum(changes) / len(changes)
    variance = sum((change - mean) ** 2 for change in changes) / len(changes)
    return 100 * math.sqrt(variance / len(changes))


def task_cost(task: str, source: Result, result: Result) -> TaskCost:
    """Compare the results of two checkpoints on the same examples."""
    pairs = list(zip(source.answers, result.answers))
    before, after = _accuracy(source), _accuracy(result)
    return TaskCost(
        title=TASKS[task].title,
        examples=len(pairs),
        source=before,
        result=after,
        change=after - before,
        error=_standard_error(source.answers, result.answers),
        same=100 * sum(a.prediction == b.prediction for a, b in pairs) / len(pairs),
    )


@dataclass(frozen=True)
class Evaluation:
    """The comparison on every task.

    Attributes:
        costs: comparisons by task.
    """

    costs: dict[str, TaskCost]

    def _rows(self) -> list[list[str]]:
        return [
            [
                cost.title,
                f"{cost.examples:,}",
                f"{cost.source:.2f}",
                f"{cost.result:.2f}",
                f"{cost.change:+.2f} ± {cost.error:.2f}",
                f"{cost.same:.1f} %",
            ]
            for cost in self.costs.values()
        ]

    def markdown(self) -> str:
        """Markdown for the model card."""
        lines = [_HEAD, ["---", *["---:"] * (len(_HEAD) - 1)], *self._rows()]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return (
            "Accuracies in per cent of this model and its source on the same examples, with the "
            "prompts and scores of TRI-ML/vlm-evaluation; ± is the standard error of the "
            f"change.\n\n{table}"
        )

    def print_table(self) -> None:
        """Print the comparison."""
        table = Table(title="Benchmarks", caption="± is the standard error of the change.")
        for index, name in enumerate(_HEAD):
            table.add_column(name, justify="right" if index else "left")
        for row in self._rows():
            table.add_row(*row)
        print_table(table)

    def save(self, path: Path) -> None:
        """Write the comparison as JSON."""
        costs = {task: asdict(cost) for task, cost in self.costs.items()}
        path.write_text(json.dumps(costs, indent=2) + "\n", encoding="utf-8")


def compare(
    source: Path,
    result: Path,
    examples: Mapping[str, Sequence[Example]],
    file: AnswersFile,
    batch_size: int = 1,
    quiet: bool = False,
) -> Evaluation:
    """Measure a source and a result on the same examples; the models are loaded one at a time.

    Arguments and errors are those of ``answer_all``.
    """
    before, after = (
        answer_all(checkpoint, examples, file, batch_size, quiet) for checkpoint in (source, result)
    )
    return Evaluation({task: task_cost(task, before[task], after[task]) for task in examples})
