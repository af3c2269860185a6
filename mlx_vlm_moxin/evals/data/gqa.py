"""GQA, testdev_balanced: https://cs.stanford.edu/people/dorarad/gqa/download.html

Original form: ``testdev_balanced_questions.json`` of questions1.2.zip, ``images/``. Hub form
    (lmms-lab/GQA): questions and pictures are separate configurations, joined by picture id.
"""

from collections.abc import Iterator

from pydantic import BaseModel, TypeAdapter

from mlx_vlm_moxin.evals.data.files import check_rows, find, read_json
from mlx_vlm_moxin.evals.data.source import Source, load_rows
from mlx_vlm_moxin.evals.example import Example, Picture

FILES = ("testdev_balanced_questions.json", "questions1.2/testdev_balanced_questions.json")
HUB_CONFIGS = ("testdev_balanced_instructions", "testdev_balanced_images")
HUB_SPLIT = "testdev"


class _Question(BaseModel):
    imageId: str  # noqa: N815
    question: str
    answer: str
    isBalanced: bool = True  # noqa: N815


class _HubQuestion(_Question):
    id: str | None = None


_QUESTIONS = TypeAdapter(dict[str, _Question])
_HUB_QUESTION = TypeAdapter(_HubQuestion)


def _example(name: str, row: _Question, picture: Picture) -> Example:
    return Example(name, row.question, row.answer, picture, row.imageId)


def _from_hub(source: Source) -> Iterator[Example]:
    questions, images = HUB_CONFIGS
    # About 400 pictures.
    known = {row["id"]: image for row, image in load_rows(source, HUB_SPLIT, images)}
    for number, (raw, _) in enumerate(load_rows(source, HUB_SPLIT, questions, image=None)):
        where = f"{source.location}, {questions}, row {number},"
        row = check_rows(raw, _HUB_QUESTION, where)
        if row.imageId not in known:
            raise ValueError(f"{where} asks about picture {row.imageId[:100]}, which is not there")
        if row.isBalanced:
            yield _example(row.id or str(number), row, known[row.imageId])


def read(source: Source) -> Iterator[Example]:
    """The balanced questions; answers are single strings.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    file = find(source.folder, *FILES)
    if file is None:
        yield from _from_hub(source)
        return
    pictures = source.pictures("images")
    for name, row in read_json(file, _QUESTIONS).items():
        if row.isBalanced:
            yield _example(name, row, pictures.find(f"{row.imageId}.jpg"))
