"""POPE, the three parts on COCO: https://github.com/AoiDragon/POPE

Original form: ``coco_pope_{adversarial,popular,random}.json`` and COCO's val2014 pictures. Hub
form: lmms-lab/POPE.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.example import Example
from mlx_vlm_moxin.evals.pope_questions import (
    PICTURE_FOLDERS,
    Question,
    question_files,
    read_files,
    read_rows,
)

# In the order of the published harness.
GROUPS = ("adversarial", "popular", "random")


def _questions(source: Source) -> Iterable[Question]:
    files = question_files(source.folder) if source.folder.is_dir() else {}
    if not files:
        return read_rows(source)
    ordered = {group: files[group] for group in GROUPS if group in files}
    return read_files(ordered, source.pictures(*PICTURE_FOLDERS))


def read(source: Source) -> Iterator[Example]:
    """Read questions on whether an object is in the picture; the answer is "Yes" or "No".

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    counts: Counter[str] = Counter()
    for question in _questions(source):
        group = question.category
        if group not in GROUPS:
            raise ValueError(
                f"{source.location} has a category {group[:50]!r}; POPE's are {', '.join(GROUPS)}"
            )
        counts[group] += 1
        # Question ids restart in each part, and their form differs between copies.
        name, answer = f"{group}-{counts[group]}", question.answer.capitalize()
        yield Example(name, question.question, answer, question.image, question.image_source, group)
