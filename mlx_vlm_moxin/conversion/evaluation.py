"""``--evaluate``: what a conversion cost on the benchmarks of Moxin's report."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlx_vlm_moxin.evals.answers_file import AnswersFile, default_path
from mlx_vlm_moxin.evals.compare import Evaluation, compare
from mlx_vlm_moxin.evals.example import Example
from mlx_vlm_moxin.evals.options import add_example_options, examples_of
from mlx_vlm_moxin.evals.tasks import TASKS

FILE_NAME = "evaluation.json"
_PREFIX = "evaluate-"


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--evaluate`` and the options that choose its examples."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--evaluate",
        nargs="+",
        choices=TASKS,
        metavar="TASK",
        help="measure these benchmarks on source and result, and write what the conversion cost "
        f"into the model card: {', '.join(TASKS)}",
    )
    add_example_options(group, _PREFIX)


def planned_examples(args: argparse.Namespace) -> dict[str, list[Example]] | None:
    """The examples of ``--evaluate``, checked before a long conversion; None if it is not given.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    if args.evaluate is None:
        given = [args.evaluate_data, args.evaluate_image_folder, args.evaluate_limit]
        if any([*given, args.evaluate_output]):
            raise ValueError("--evaluate-... options have no effect without --evaluate TASK")
        return None
    tasks = list(dict.fromkeys(args.evaluate))
    options = (args.evaluate_data, args.evaluate_image_folder, args.evaluate_limit)
    return examples_of(tasks, *options)[0]


def evaluate(
    source: Path,
    result: Path,
    examples: dict[str, Sequence[Example]],
    args: argparse.Namespace,
) -> Evaluation:
    """Compare a conversion with its source on the planned examples, and write ``FILE_NAME``.

    Answers are kept in ``--evaluate-output``; answers of the same weights to the same examples
    are not computed again.

    Args:
        source, result: directories that mlx-vlm loads.

    Raises:
        OSError, ValueError: one line that says what is wrong.
    """
    file = AnswersFile(args.evaluate_output or default_path(str(result)))
    evaluation = compare(source, result, examples, file, args.evaluate_batch_size, args.quiet)
    evaluation.save(result / FILE_NAME)
    if not args.quiet:
        evaluation.print_table()
    return evaluation
