"""OCID-Ref, val: https://github.com/lluma/OCID-Ref

``val_expressions.json`` and the pictures of OCID (``OCID-dataset/``).
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, Field, Json, TypeAdapter

from mlx_vlm_moxin.evals.data.files import read_json, require
from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.example import Example
from mlx_vlm_moxin.evals.scores.boxes import relative_box

FILES = ("val_expressions.json",)
GROUPS = ("minimum clutter", "medium clutter", "maximum clutter")
# Number of a series' last picture in which the objects are separate, touching, and stacked.
_LAST_TAKES = (9, 16, 20)
# Size of all pictures in pixels.
_WIDTH = 640
_HEIGHT = 480


class _Expression(BaseModel):
    scene_path: str
    # Corners in pixels, as a string of JSON.
    bbox: Json[tuple[float, float, float, float]]
    sentence: str
    take_id: Annotated[int, Field(ge=0, le=_LAST_TAKES[-1])]


_EXPRESSIONS = TypeAdapter(dict[str, _Expression])


def clutter(take_id: int) -> str:
    """The group of a picture, by its number in the series."""
    return next(group for group, last in zip(GROUPS, _LAST_TAKES) if take_id <= last)


def read(source: Source) -> Iterator[Example]:
    """Expressions; the answer is a box.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    file = require(source.folder, *FILES)
    pictures = source.pictures("OCID-dataset", "images")
    for name, row in read_json(file, _EXPRESSIONS).items():
        try:
            box = relative_box(row.bbox, _WIDTH, _HEIGHT)
        except ValueError as error:
            raise ValueError(f"{file}, expression {name[:50]}: {error}") from error
        picture = pictures.find(row.scene_path)
        yield Example(name, row.sentence, box, picture, row.scene_path, clutter(row.take_id))
