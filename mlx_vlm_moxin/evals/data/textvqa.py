"""TextVQA, val: https://textvqa.org/dataset/

``TextVQA_0.5.1_val.json`` and the pictures of train_val_images.zip. The questions with the words
found by OCR also need ``textvqa_val_v051_ocr.jsonl``, LLaVA's list in the same order.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter

from mlx_vlm_moxin.evals.data.files import find, read_json, read_json_lines, require
from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.example import Example

FILE = "TextVQA_0.5.1_val.json"
OCR_FILES = ("textvqa_val_v051_ocr.jsonl", "llava_textvqa_val_v051_ocr.jsonl")
_OCR_MARK = "\nReference OCR token:"
# LLaVA's list ends each question with this text, which our prompt adds.
_LLAVA_SUFFIX = "\nAnswer the question using a single word or phrase."


class _Question(BaseModel):
    question_id: int
    image_id: str
    question: str
    answers: Annotated[list[str], Field(min_length=1)]


class _File(BaseModel):
    data: list[_Question]


class _OcrQuestion(BaseModel):
    text: str


_FILE = TypeAdapter(_File)
_OCR_QUESTION = TypeAdapter(_OcrQuestion)


def _ocr_texts(path: Path, count: int) -> list[str]:
    texts = [row.text.removesuffix(_LLAVA_SUFFIX) for row in read_json_lines(path, _OCR_QUESTION)]
    if len(texts) != count:
        raise ValueError(f"{path} has {len(texts)} questions, {FILE} has {count}")
    return texts


def _read(source: Source, *, with_ocr: bool) -> Iterator[Example]:
    file = require(source.folder, FILE)
    rows = read_json(file, _FILE).data
    ocr = (require if with_ocr else find)(source.folder, *OCR_FILES)
    # The published harness reads the questions from the OCR list even without OCR words.
    texts = [row.question for row in rows] if ocr is None else _ocr_texts(ocr, len(rows))
    pictures = source.pictures("train_val_images", "train_images", "images")
    for row, text in zip(rows, texts):
        question = text if with_ocr else text.partition(_OCR_MARK)[0]
        name = f"{row.image_id}.jpg"
        yield Example(str(row.question_id), question, row.answers, pictures.find(name), name)


def read(source: Source) -> Iterator[Example]:
    """Read the questions without OCR words, with ten people's answers.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    return _read(source, with_ocr=False)


def read_with_ocr(source: Source) -> Iterator[Example]:
    """Read the questions with the words that OCR found in the picture; otherwise like ``read``."""
    return _read(source, with_ocr=True)
