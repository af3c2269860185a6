"""VQAv2, val: https://visualqa.org/download.html

The questions and annotations files of val2014 and COCO's val2014 pictures.
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter

from mlx_vlm_moxin.evals.data.files import read_json, require
from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.example import Example

QUESTIONS = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_val2014_questions.json")
ANNOTATIONS = ("v2_mscoco_val2014_annotations.json", "v2_val2014_annotations.json")
GROUPS = ("yes/no", "number", "other")


class _Question(BaseModel):
    question_id: int
    question: str


class _Questions(BaseModel):
    questions: list[_Question]


class _Answer(BaseModel):
    answer: str


class _Annotation(BaseModel):
    question_id: int
    image_id: int
    answer_type: str
    answers: Annotated[list[_Answer], Field(min_length=1)]


class _Annotations(BaseModel):
    annotations: list[_Annotation]


_QUESTIONS_FORM = TypeAdapter(_Questions)
_ANNOTATIONS_FORM = TypeAdapter(_Annotations)


def read(source: Source) -> Iterator[Example]:
    """Read questions with ten people's answers.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    questions_file = require(source.folder, *QUESTIONS)
    annotations_file = require(source.folder, *ANNOTATIONS)
    questions = read_json(questions_file, _QUESTIONS_FORM).questions
    texts = {row.question_id: row.question for row in questions}
    pictures = source.pictures("val2014", "images_val2014", "images")
    for row in read_json(annotations_file, _ANNOTATIONS_FORM).annotations:
        if row.question_id not in texts:
            raise ValueError(f"{questions_file} has no question {row.question_id}")
        name = f"COCO_val2014_{row.image_id:012d}.jpg"
        text, answers = texts[row.question_id], [answer.answer for answer in row.answers]
        picture = pictures.find(name)
        yield Example(str(row.question_id), text, answers, picture, name, row.answer_type)
