"""Options that choose examples, for the commands that answer examples."""

import argparse
from pathlib import Path
from typing import Any

from mlx_vlm_moxin.evals.example import Example
from mlx_vlm_moxin.evals.run import read_examples
from mlx_vlm_moxin.evals.sources import find_sources
from mlx_vlm_moxin.evals.tasks import TASKS


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def add_example_options(group: Any, prefix: str = "") -> None:
    """Add the options to a parser or argument group, with ``prefix`` before their names."""

    def add(name: str, **settings: Any) -> None:
        group.add_argument(f"--{prefix}{name}", **settings)

    add(
        "data",
        nargs="+",
        default=[],
        metavar="[TASK=]PLACE",
        help="local copies in their published form: a folder for a task, or one folder that "
        "contains a folder for each task (default: the Hub's copies, if there are any)",
    )
    add(
        "image-folder",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="pictures that are not in the data set's own folder, such as COCO's",
    )
    add(
        "limit",
        type=_positive,
        metavar="N",
        help="at most N examples per task, or per part of a task (POPE, OCID-Ref, TallyQA, "
        "AI2D), drawn as the published harness draws its smaller sets",
    )
    add("batch-size", type=_positive, default=1, metavar="B", help="questions per batch")
    add(
        "output",
        type=Path,
        metavar="FILE",
        help="one JSON line per example (default: results/eval/MODEL.jsonl)",
    )


def examples_of(
    tasks: list[str],
    data: list[str],
    image_folders: list[Path],
    limit: int | None,
    streaming: bool = False,
) -> tuple[dict[str, list[Example]], dict[str, str]]:
    """The examples of each task, all checked, and their source.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    sources = find_sources(tasks, data, image_folders, streaming)
    examples = {task: read_examples(TASKS[task], sources[task], limit) for task in tasks}
    return examples, {task: source.location for task, source in sources.items()}
