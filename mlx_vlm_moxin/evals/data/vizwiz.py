"""VizWiz-VQA, val: https://vizwiz.org/tasks-and-datasets/vqa/

Original form: ``val.json`` of Annotations.zip, the pictures of val.zip. Hub form:
    lmms-lab/VizWiz-VQA, which does not mark the answerable questions.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from mlx_vlm_moxin.evals.data.files import check_rows, find, read_json
from mlx_vlm_moxin.evals.data.source import Source, load_rows
from mlx_vlm_moxin.evals.example import Example

FILES = ("val.json", "Annotations/val.json", "annotations/val.json")
GROUPS = ("unanswerable", "answerable")


class _Answer(BaseModel):
    answer: str


class _Question(BaseModel):
    image: str
    question: str
    answers: Annotated[list[_Answer], Field(min_length=1)]
    answerable: Literal[0, 1]


class _HubQuestion(BaseModel):
    question: str
    answers: Annotated[list[str], Field(min_length=1)]


_QUESTIONS = TypeAdapter(list[_Question])
_HUB_QUESTION = TypeAdapter(_HubQuestion)


def _from_hub(source: Source) -> Iterator[Example]:
    for number, (raw, picture) in enumerate(load_rows(source, "val")):
        row = check_rows(raw, _HUB_QUESTION, f"{source.location}, row {number},")
        yield Example(str(number), row.question, row.answers, picture, str(number))


def read(source: Source) -> Iterator[Example]:
    """Read all questions, each about a separate picture, with ten people's answers.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    file = find(source.folder, *FILES)
    if file is None:
        yield from _from_hub(source)
        return
    pictures = source.pictures("val", "val_images", "images")
    for number, row in enumerate(read_json(file, _QUESTIONS)):
        answers = [answer.answer for answer in row.answers]
        picture, group = pictures.find(row.image), GROUPS[row.answerable]
        yield Example(str(number), row.question, answers, picture, row.image, group)
