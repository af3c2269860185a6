"""Reads POPE's questions from its original files or a data set in Hugging Face's format."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from mlx_vlm_moxin.evals.data.files import Pictures
from mlx_vlm_moxin.evals.data.source import Source, load_rows
from mlx_vlm_moxin.evals.example import Picture
from mlx_vlm_moxin.evals.pope_scores import CATEGORIES, LABELS

# Folders of COCO's pictures, as named by COCO's zip file and by Prismatic's harness.
PICTURE_FOLDERS = ("val2014", "val_images", "images")


@dataclass
class Question:
    """One question about one picture; ``answer`` is ``"yes"`` or ``"no"``."""

    question_id: str
    category: str
    question: str
    answer: str
    image_source: str
    image: Picture


def _question(where: str, category: str, row: dict, names: dict[str, str]) -> Question:
    missing = [name for name in names.values() if row.get(name) is None]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}; it has {sorted(row)}")
    fields = {field: row[name] for field, name in names.items()}
    answer = str(fields["answer"]).strip().lower()
    if answer not in LABELS:
        raise ValueError(f"{where} has the answer {fields['answer']!r}; POPE's are yes and no")
    text = str(fields["question"]).strip()
    question_id = str(row.get("question_id", where))
    source = str(row.get("image_source", fields["image"]))
    return Question(question_id, category, text, answer, source, fields["image"])


def question_files(dataset: Path) -> dict[str, Path]:
    """POPE's original files (``*_random.json`` and so on) by category; empty if there are none.

    Args:
        dataset: one of these files, or a directory of them.
    """
    files = [dataset] if dataset.is_file() else sorted(dataset.glob("*.json*"))
    return {c: f for c in CATEGORIES for f in files if f.stem.rpartition("_")[2] == c}


def read_files(files: dict[str, Path], pictures: Pictures) -> Iterator[Question]:
    """Read the questions of POPE's original files.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    names = {"question": "text", "answer": "label", "image": "image"}
    for category, file in files.items():
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{file}, line {number},"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where} is not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"{where} is not a JSON object")
                question = _question(where, category, row, names)
                try:
                    question.image = pictures.find(str(row["image"]))
                except FileNotFoundError as error:
                    raise FileNotFoundError(f"{where} asks about {row['image']}: {error}") from None
                yield question


def read_rows(source: Source, split: str = "test") -> Iterator[Question]:
    """Read the questions of a data set in Hugging Face's format.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    names = {"question": "question", "answer": "answer", "image": "image"}

    def question(number: int, row: dict, picture: Picture) -> Question:
        where, category = f"Row {number} of {source.location}", str(row.get("category", split))
        return _question(where, category, {**row, "image": picture}, names)

    rows = load_rows(source, split)
    return (question(number, *row) for number, row in enumerate(rows))


def _opened(question: Question) -> Question:
    image = question.image
    return replace(question, image=image()) if callable(image) else question


def load_questions(
    dataset: str,
    split: str = "test",
    *,
    image_folder: Path | None = None,
    streaming: bool = False,
    max_samples: int | None = None,
) -> Iterable[Question]:
    """The questions of ``dataset`` in their order, at most ``max_samples``.

    Args:
        dataset: one of POPE's original files or a directory of them (JSON lines with ``text``,
            ``label`` and ``image``, categories by file name), or a directory or Hub id that
            ``datasets.load_dataset`` reads (such as ``lmms-lab/POPE``), with the columns
            ``question``, ``answer``, ``category`` and ``image``.
        split: split of a data set in Hugging Face's format.
        image_folder: folder of the pictures of original files, if not next to them.
        streaming: read a data set from the Hub row by row.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    path = Path(dataset)
    files = question_files(path) if path.exists() else {}
    if files:
        folder = path if path.is_dir() else path.parent
        pictures = Pictures.of(folder, PICTURE_FOLDERS, ())
        if image_folder is not None:
            pictures = Pictures((image_folder,))
        # A list, so that everything is checked before the first question is answered.
        return list(islice(read_files(files, pictures), max_samples))
    rows = read_rows(Source(dataset, streaming=streaming), split)
    return map(_opened, islice(rows, max_samples))
