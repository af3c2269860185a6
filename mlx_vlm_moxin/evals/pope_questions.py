"""POPE's questions, from its own files or from a data set in Hugging Face's format."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from mlx_vlm_moxin.evals.pope_scores import CATEGORIES, LABELS


@dataclass
class Question:
    """One question about one picture; ``answer`` is ``"yes"`` or ``"no"``."""

    question_id: str
    category: str
    question: str
    answer: str
    image_source: str
    image: Image.Image | Path


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
    """POPE's own files by category, ``*_random.json`` and so on; empty if there are none.

    Args:
        dataset: such a file, or a directory of them.
    """
    files = [dataset] if dataset.is_file() else sorted(dataset.glob("*.json*"))
    return {c: f for c in CATEGORIES for f in files if f.stem.rpartition("_")[2] == c}


def _from_files(files: dict[str, Path], image_folder: Path) -> Iterator[Question]:
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
                    raise ValueError(f"{where} is no JSON: {error}") from error
                question = _question(where, category, row, names)
                question.image = image_folder / row["image"]
                if not question.image.is_file():
                    raise FileNotFoundError(
                        f"{where} asks about {question.image}, which is not there; "
                        "name the folder of the pictures with --image-folder"
                    )
                yield question


def _from_rows(rows: Iterable[dict], dataset: str, split: str) -> Iterator[Question]:
    names = {"question": "question", "answer": "answer", "image": "image"}
    for number, row in enumerate(rows):
        where = f"Row {number} of {dataset}"
        yield _question(where, str(row.get("category", split)), row, names)


def load_questions(
    dataset: str,
    split: str = "test",
    *,
    image_folder: Path | None = None,
    streaming: bool = False,
    max_samples: int | None = None,
) -> Iterable[Question]:
    """The questions of ``dataset``, in its order, at most ``max_samples``.

    Args:
        dataset: POPE's own file or a directory of them (JSON lines with ``text``,
            ``label`` and ``image``, categories by file name), or what
            ``datasets.load_dataset`` reads with the columns ``question``, ``answer``,
            ``category`` and ``image`` (a directory or a Hub id like ``lmms-lab/POPE``).
        split: of the latter.
        image_folder: where the pictures of POPE's own files are, if not beside them.
        streaming: read the latter from the Hub row by row.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    path = Path(dataset)
    files = question_files(path) if path.exists() else {}
    if files:
        folder = image_folder or (path if path.is_dir() else path.parent)
        # A list: everything is checked before the first question is asked.
        return list(islice(_from_files(files, folder), max_samples))
    from datasets import load_dataset

    rows = load_dataset(dataset, split=split, streaming=streaming)
    return islice(_from_rows(rows, dataset, split), max_samples)
