"""``--data``: the location of each task's examples."""

import re
from collections.abc import Sequence
from pathlib import Path

from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.tasks import TASKS


def _split(argument: str) -> tuple[str | None, str]:
    """Task and location of ``TASK=PLACE``; None and the location if no task is given."""
    task, equals, place = argument.partition("=")
    return (task, place) if equals and task in TASKS else (None, argument)


def _location(task: str, given: dict[str | None, str], tasks: Sequence[str]) -> str | None:
    """The location that the command line gives for a task; None if it gives none."""
    if task in given:
        return given[task]
    if None not in given:
        return None
    folder = Path(given[None]).expanduser() / (TASKS[task].folder or task)
    return str(folder) if folder.is_dir() or len(tasks) > 1 else given[None]


def _may_be_hub_id(task: str, place: str) -> bool:
    return TASKS[task].hub is not None and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", place) is not None


def find_sources(
    tasks: Sequence[str],
    data: Sequence[str] = (),
    image_folders: Sequence[Path] = (),
    streaming: bool = False,
) -> dict[str, Source]:
    """The source of each task.

    Args:
        data: values of the form ``TASK=PLACE``, or one ``PLACE``: a folder that contains a folder
            for each task, or the folder of the only task. A place is a folder or a Hub id. Tasks
            without a place use their copy on the Hub.
        image_folders: folders that are searched for pictures first.
        streaming: read Hub copies row by row.

    Raises:
        ValueError: if a task is named twice, or not among ``tasks``.
        FileNotFoundError: if a folder is missing, or a task needs one and none is given.
    """
    given: dict[str | None, str] = {}
    for task, place in map(_split, data):
        if task in given:
            raise ValueError(f"--data names {task or 'a folder for all tasks'} twice")
        if task is not None and task not in tasks:
            raise ValueError(f"--data names {task}, which is not among --tasks")
        given[task] = place
    sources = {}
    for task in tasks:
        place = _location(task, given, tasks) or TASKS[task].hub
        if place is None:
            raise FileNotFoundError(
                f"{task} has no copy on the Hub; name a folder that contains {TASKS[task].files}: "
                f"--data {task}=FOLDER"
            )
        if not Path(place).expanduser().is_dir() and not _may_be_hub_id(task, place):
            raise FileNotFoundError(
                f"No folder {place} for {task}; it should contain {TASKS[task].files}"
            )
        sources[task] = Source(place, tuple(image_folders), streaming)
    return sources
