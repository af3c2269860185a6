"""TallyQA, test: https://github.com/manoja328/tallyqa

``test.json`` of tallyqa.zip and Visual Genome's pictures in ``VG_100K/``, ``VG_100K_2/``.
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter

from mlx_vlm_moxin.evals.data.files import read_json, require
from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.example import Example

FILES = ("test.json",)
GROUPS = ("simple", "complex")
# The numbers 0 to 15 are the choices, under the letters A to P.
CHOICES = tuple(str(number) for number in range(16))


class _Question(BaseModel):
    question_id: int
    question: str
    image: str
    answer: Annotated[int, Field(ge=0)]
    issimple: bool


_QUESTIONS = TypeAdapter(list[_Question])


def read(source: Source) -> Iterator[Example]:
    """Read counting questions; the answer is the letter of the number.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    file = require(source.folder, *FILES)
    pictures = source.pictures("images", "visual-genome")
    for row in read_json(file, _QUESTIONS):
        # Numbers above 15 have no letter, so these questions cannot be answered correctly.
        letter = chr(ord("A") + row.answer) if row.answer < len(CHOICES) else str(row.answer)
        group = GROUPS[0] if row.issimple else GROUPS[1]
        picture = pictures.find(row.image)
        name = str(row.question_id)
        yield Example(name, row.question, letter, picture, row.image, group, CHOICES)
