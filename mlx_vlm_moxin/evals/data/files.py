"""Finds and reads the files of a data set; errors about them are one line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
_MAX_REASON = 200


def _reason(error: ValidationError) -> str:
    """The first error and its location."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part)[:40] for part in first["loc"])
    return f"{place}: {first['msg']}"[:_MAX_REASON] if place else first["msg"][:_MAX_REASON]


def check_rows(rows: Any, form: TypeAdapter[T], where: str) -> T:
    """Check that ``rows`` have their published form.

    Raises:
        ValueError: naming the first error.
    """
    try:
        return form.validate_python(rows)
    except ValidationError as error:
        raise ValueError(f"{where} is not in its published form ({_reason(error)})") from error


def read_json(path: Path, form: TypeAdapter[T]) -> T:
    """Read a JSON file in its published form.

    Raises:
        OSError, ValueError: naming the file and the first error in it.
    """
    try:
        return form.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not in its published form ({_reason(error)})") from error


def read_json_lines(path: Path, form: TypeAdapter[T]) -> Iterator[T]:
    """Read a file with a JSON value per line; blank lines are skipped.

    Raises:
        OSError, ValueError: naming the line and the first error in it.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield form.validate_json(line)
            except ValidationError as error:
                raise ValueError(
                    f"{path}, line {number}, is not in its published form ({_reason(error)})"
                ) from error


def find(folder: Path, *names: str) -> Path | None:
    """The path of the first of ``names`` that exists in ``folder``; None if none does."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def require(folder: Path, *names: str) -> Path:
    """Like ``find``, but raises FileNotFoundError naming what was looked for."""
    found = find(folder, *names)
    if found is None:
        what = "exist" if not folder.is_dir() else f"contain {' or '.join(names)}"
        raise FileNotFoundError(f"{folder} does not {what}; name the folder of the data set")
    return found


@dataclass(frozen=True)
class Pictures:
    """The folders that may contain the pictures of a data set.

    Attributes:
        folders: folders in the order in which they are searched.
    """

    folders: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path, subfolders: Sequence[str], others: Sequence[Path]) -> "Pictures":
        """For a data set in ``folder``; the user's ``others`` are searched first."""
        return cls((*others, *(folder / name for name in subfolders), folder))

    def find(self, name: str) -> Path:
        """The path of the picture ``name``, relative to one of the folders.

        Raises:
            ValueError: if the name leads outside the folders.
            FileNotFoundError: if it is in none of them.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(f"The picture name {name[:100]!r} leads outside the data set's folder")
        found = next((f / name for f in self.folders if (f / name).is_file()), None)
        if found is None:
            places = ", ".join(map(str, self.folders[:4]))
            raise FileNotFoundError(
                f"No picture {name[:100]} in {places}; "
                "name the folder of the pictures with --image-folder"
            )
        return found
