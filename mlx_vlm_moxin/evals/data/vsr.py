"""VSR, zero-shot test: https://github.com/cambridgeltl/visual-spatial-reasoning

Original form: ``test.jsonl`` and the pictures of vsr_images.zip in ``images/``. Hub form:
    cambridgeltl/vsr_zeroshot, whose pictures are URLs on COCO's server.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, TypeAdapter

from mlx_vlm_moxin.evals.data.files import check_rows, find, read_json_lines
from mlx_vlm_moxin.evals.data.source import Source, load_rows
from mlx_vlm_moxin.evals.example import Example, Picture

FILES = ("test.jsonl",)
_LABELS = ("False", "True")


class _Caption(BaseModel):
    image: str
    caption: str
    label: Literal[0, 1]


class _HubCaption(_Caption):
    image_link: str


_CAPTION = TypeAdapter(_Caption)
_HUB_CAPTION = TypeAdapter(_HubCaption)


def _example(number: int, row: _Caption, picture: Picture) -> Example:
    return Example(str(number), row.caption, _LABELS[row.label], picture, row.image)


def read(source: Source) -> Iterator[Example]:
    """Read captions; the answer is whether the caption is true of its picture.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    file = find(source.folder, *FILES)
    if file is None:
        for number, (raw, _) in enumerate(load_rows(source, "test", image=None)):
            row = check_rows(raw, _HUB_CAPTION, f"{source.location}, row {number},")
            yield _example(number, row, row.image_link)
        return
    pictures = source.pictures("images")
    for number, row in enumerate(read_json_lines(file, _CAPTION)):
        yield _example(number, row, pictures.find(row.image))
