"""The location of a task's examples, and rows of data sets in Hugging Face's format."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mlx_vlm_moxin.checkpoints.sources.files import check_name
from mlx_vlm_moxin.evals.data.files import Pictures
from mlx_vlm_moxin.evals.example import Picture


@dataclass(frozen=True)
class Source:
    """The location of a data set.

    Attributes:
        location: a folder, or a Hub id.
        image_folders: folders searched for pictures before those of the data set.
        streaming: read a Hub data set row by row instead of downloading it.
    """

    location: str
    image_folders: tuple[Path, ...] = ()
    streaming: bool = False

    @property
    def folder(self) -> Path:
        """The location as a path."""
        return Path(self.location).expanduser()

    def pictures(self, *subfolders: str) -> Pictures:
        """The picture folders of a data set with pictures in one of ``subfolders``."""
        return Pictures.of(self.folder, subfolders, self.image_folders)

    def has(self, *names: str) -> bool:
        """Whether the location is a folder that contains one of ``names``."""
        return any((self.folder / name).exists() for name in names)


def _picture(rows: Any, index: int, column: str) -> Image.Image:
    picture = rows[index][column]
    if picture is None:
        raise ValueError(f"Row {index} of the data set has no picture")
    return picture


def load_rows(
    source: Source, split: str, config: str | None = None, image: str | None = "image"
) -> Iterator[tuple[dict[str, Any], Picture | None]]:
    """Rows of a data set that ``datasets.load_dataset`` reads, and each row's picture.

    The data set is opened immediately, but its rows are read when they are needed.

    Args:
        split, config: split and configuration of the data set.
        image: column with the pictures, which is removed from the rows; None if there is none.

    Raises:
        FileNotFoundError: if the location is neither a folder nor a Hub id.
        OSError, ValueError: from ``datasets``, if there is no such data set.
    """
    from datasets import load_dataset

    folder = source.folder
    if not folder.exists():
        check_name(source.location)
    location = str(folder) if folder.exists() else source.location
    try:
        rows = load_dataset(location, config, split=split, streaming=source.streaming)
    except ConnectionError as error:
        raise ConnectionError(f"{error}; name a folder with a copy of the data set") from error
    if image is None:
        return ((row, None) for row in rows)
    if source.streaming:
        return ((row, row.pop(image)) for row in rows)
    if image not in rows.column_names:
        raise ValueError(f"{location} has no column {image!r}; it has {rows.column_names[:20]}")
    # Decode pictures when they are needed, not when the rows are listed.
    texts = rows.remove_columns(image)
    return ((row, partial(_picture, rows, index, image)) for index, row in enumerate(texts))
