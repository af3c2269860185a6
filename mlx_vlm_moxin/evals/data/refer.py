"""RefCOCO, RefCOCO+ and RefCOCOg, val: https://github.com/lichengunc/refer

A folder with ``refs(unc).p`` (RefCOCOg: ``refs(umd).p``) and ``instances.json``. COCO's
train2014 pictures may be in it, next to it or in ``--image-folder``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from mlx_vlm_moxin.evals.data.files import check_rows, read_json, require
from mlx_vlm_moxin.evals.data.plain_pickle import read_plain_pickle
from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.example import Example
from mlx_vlm_moxin.evals.scores.boxes import relative_box

SPLIT = "val"
# A pickle can refer to one list many times, so limit the sentences: RefCOCO has 142,210.
MAX_SENTENCES = 2_000_000


class _Sentence(BaseModel):
    sent: str
    sent_id: int


class _Ref(BaseModel):
    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: list[_Sentence]


class _Image(BaseModel):
    id: int
    width: int
    height: int


class _Annotation(BaseModel):
    id: int
    # x, y, width and height in pixels.
    bbox: tuple[float, float, float, float]


class _Instances(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]


_REFS = TypeAdapter(list[_Ref])
_INSTANCES = TypeAdapter(_Instances)


def _split_refs(value: Any, path: Path) -> list[_Ref]:
    """Check the expressions and return those of the split."""
    if not isinstance(value, list):
        raise ValueError(f"{path} contains {type(value).__name__} instead of a list of expressions")
    refs = [ref for ref in value if not isinstance(ref, dict) or ref.get("split") == SPLIT]
    lists = [ref.get("sentences") for ref in refs if isinstance(ref, dict)]
    if sum(len(sentences) for sentences in lists if isinstance(sentences, list)) > MAX_SENTENCES:
        raise ValueError(f"{path} contains more than {MAX_SENTENCES} sentences; download it again")
    return check_rows(refs, _REFS, str(path))


def _box(ref: _Ref, instances: "_ById", where: str) -> list[float]:
    """The box of the object that an expression describes."""
    if ref.ann_id not in instances.boxes or ref.image_id not in instances.sizes:
        raise ValueError(f"{where} has no annotation {ref.ann_id} of a picture {ref.image_id}")
    x, y, width, height = instances.boxes[ref.ann_id]
    try:
        return relative_box((x, y, x + width, y + height), *instances.sizes[ref.image_id])
    except ValueError as error:
        raise ValueError(f"{where}, annotation {ref.ann_id}: {error}") from error


class _ById:
    """Boxes and picture sizes of an instances.json, by id."""

    def __init__(self, instances: _Instances):
        self.boxes = {annotation.id: annotation.bbox for annotation in instances.annotations}
        self.sizes = {image.id: (image.width, image.height) for image in instances.images}


@dataclass(frozen=True)
class Refer:
    """One of the three data sets.

    Attributes:
        folder: name of its folder.
        refs_file: name of the file with its expressions.
    """

    folder: str
    refs_file: str

    def __call__(self, source: Source) -> Iterator[Example]:
        """Yield each sentence of each expression; the answer is a box.

        Raises:
            OSError, ValueError: naming what is missing or wrong, and where.
        """
        names = (self.refs_file, f"{self.folder}/{self.refs_file}")
        refs_path = require(source.folder, *names)
        refs = _split_refs(read_plain_pickle(refs_path), refs_path)
        instances_path = require(refs_path.parent, "instances.json")
        instances = _ById(read_json(instances_path, _INSTANCES))
        beside = refs_path.parent.parent
        pictures = Source(str(refs_path.parent), (*source.image_folders, beside / "train2014"))
        found = pictures.pictures("train2014", "images")
        for ref in refs:
            name = f"COCO_train2014_{ref.image_id:012d}.jpg"
            picture, box = found.find(name), _box(ref, instances, str(instances_path))
            for sentence in ref.sentences:
                example_id = f"{ref.ref_id}-{sentence.sent_id}"
                yield Example(example_id, sentence.sent, box, picture, name)


REFCOCO = Refer("refcoco", "refs(unc).p")
REFCOCO_PLUS = Refer("refcoco+", "refs(unc).p")
REFCOCOG = Refer("refcocog", "refs(umd).p")
