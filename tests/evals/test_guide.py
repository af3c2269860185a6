"""docs/evaluations.md describes the tasks as they are in the code."""

import re
from pathlib import Path

import pytest

from mlx_vlm_moxin.evals.__main__ import build_parser
from mlx_vlm_moxin.evals.published import MOXIN, PUBLISHED
from mlx_vlm_moxin.evals.speed import build_parser as speed_parser
from mlx_vlm_moxin.evals.tasks import TASKS

TEXT = (Path(__file__).parents[2] / "docs/evaluations.md").read_text(encoding="utf-8")
TABLE = re.search(r"## Tasks\n(.*?)\n## ", TEXT, re.DOTALL)[1]


@pytest.mark.parametrize("task", TASKS)
def test_the_table_of_tasks_is_the_codes(task):
    (row,) = re.findall(rf"^\| `{re.escape(task)}` \|(.*)\|$", TABLE, re.MULTILINE)
    published, examples, _, hub = (cell.strip() for cell in row.split("|"))
    known = PUBLISHED[MOXIN].get(task)
    assert published == ("" if known is None else f"{known:.4g}" if known != 66 else "66.0")
    assert examples == f"{TASKS[task].examples:,}"
    assert hub.split(",")[0] == (TASKS[task].hub or "")


def test_the_commands_parse():
    lines = re.findall(r"^python -m mlx_vlm_moxin eval (.*)$", TEXT, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        assert build_parser().parse_args(line.split()).tasks
    for line in re.findall(r"^python -m mlx_vlm_moxin\.evals\.speed (.*)$", TEXT, re.MULTILINE):
        assert speed_parser().parse_args(line.partition("#")[0].split()).tasks
