"""AI2D, all questions: https://prior.allenai.org/projects/diagram-understanding

``questions/*.json`` and ``images/`` of ai2d-all.zip, with ``ai2d_test_ids.csv`` next to them.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter

from mlx_vlm_moxin.evals.data.files import find, read_json, require
from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.example import Example

FOLDERS = ("questions", "ai2d/questions")
GROUPS = ("val", "test")
_TEST_IDS = ("ai2d_test_ids.csv", "../ai2d_test_ids.csv")


class _Question(BaseModel):
    answerTexts: Annotated[list[str], Field(min_length=4, max_length=4)]  # noqa: N815
    correctAnswer: Annotated[int, Field(ge=0, le=3)]  # noqa: N815


class _Diagram(BaseModel):
    imageName: str  # noqa: N815
    questions: dict[str, _Question]


_DIAGRAM = TypeAdapter(_Diagram)


def _test_ids(path: Path) -> set[str]:
    """Read the numbers of the test set's pictures, one per line."""
    ids = path.read_text(encoding="utf-8").split()
    wrong = next((name for name in ids if not name.isdecimal()), None)
    if wrong is not None:
        raise ValueError(f"{path} should contain one number per line, not {wrong[:50]!r}")
    return set(ids)


def _number(path: Path) -> tuple[int, str]:
    digits = re.match(r"\d+", path.name)
    return (int(digits[0]) if digits else 0, path.name)


def read(source: Source) -> Iterator[Example]:
    """Questions about diagrams; the answer is the letter of one of four choices.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    folder = require(source.folder, *FOLDERS)
    ids_file = find(folder.parent, *_TEST_IDS)
    if ids_file is None:
        raise FileNotFoundError(
            f"{folder.parent} does not contain ai2d_test_ids.csv, which defines the test set"
        )
    test_ids = _test_ids(ids_file)
    pictures = Source(str(folder.parent), source.image_folders).pictures("images")
    for path in sorted(folder.glob("*.json"), key=_number):
        diagram = read_json(path, _DIAGRAM)
        number = path.name.partition(".")[0]
        group = GROUPS[number in test_ids]
        for index, (text, question) in enumerate(diagram.questions.items()):
            letter, choices = "ABCD"[question.correctAnswer], tuple(question.answerTexts)
            picture = pictures.find(diagram.imageName)
            name = f"{number}-{index}"
            yield Example(name, text, letter, picture, diagram.imageName, group, choices)
