"""Files of a source: on disk or from the Hub, and never from outside its directory."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from mlx_vlm.models.moxin.checkpoint import INDEX_FILE

from mlx_vlm_moxin.checkpoints.messages import format_size
from mlx_vlm_moxin.checkpoints.regular_files import check_regular

# Everything but weights that a conversion may read.
SMALL_FILES = ["*.json", "*.jinja"]
# The index of a checkpoint with 2,000 tensors has about 200 kB.
MAX_JSON_BYTES = 4 << 20
_SHARD = re.compile(r"[^/\\]+\.safetensors")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    check_regular(path)
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(
            f"{path} has {format_size(size)}; settings have at most {format_size(MAX_JSON_BYTES)}"
        )
    try:
        # Python would read NaN and Infinity, which JSON does not have.
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__} instead of a JSON object")
    return content


def check_inside(path: Path, directory: Path) -> None:
    """Refuse a symbolic link that leaves its directory; the Hub's own cache may.

    Raises:
        ValueError: naming the link and its target.
    """
    root, target = directory.resolve(), path.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise ValueError(
            f"{path} is a link to {target}, outside of its directory; "
            "if you trust it, put a copy of the file in its place"
        )


def check_index(directory: Path) -> None:
    """Refuse a safetensors index that names anything but files next to it.

    Raises:
        ValueError: naming the entry.
    """
    path = directory / INDEX_FILE
    if not path.exists():
        return
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{path} has no weight_map; download it again")
    for name in weight_map.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise ValueError(
                f"{path} names the file {str(name)[:100]!r}, which is not in its directory"
            )


def check_directory(directory: Path) -> None:
    """:func:`check_inside` and :func:`check_regular` for all files that are read, and
    :func:`check_index`.

    Raises:
        ValueError: see there.
    """
    for pattern in ("*.json", "*.jinja", "*.safetensors", "*.pt", "checkpoints", "checkpoints/*"):
        for path in directory.glob(pattern):
            check_inside(path, directory)
            if path.exists() and not path.is_dir():
                check_regular(path)
    check_index(directory)


def local_path(name: str) -> Path:
    """``name`` as a path, whether there is anything or not."""
    return Path(name).expanduser()


def is_repository(name: str) -> bool:
    """Whether ``name`` is nothing on disk and reads like ``owner/name``."""
    return not local_path(name).exists() and _REPOSITORY.fullmatch(name) is not None


@contextlib.contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """One line for whatever goes wrong between here and the Hub."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise OSError(f"The Hub repository {name} has no revision {revision}") from error
    except GatedRepoError as error:
        raise OSError(
            f"The Hub repository {name} is gated; ask for access on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise OSError(
            f"{name} is no local directory, and the Hub has no such repository, or none that you "
            "may read (`hf auth login`)"
        ) from error
    except Exception as error:
        # The client's HTTP library, and with it the type of a lost connection, varies.
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{name} is no local directory and cannot be downloaded ({reason}); "
            "what has arrived is kept, so run the same command again"
        ) from error


def _check_name(name: str) -> None:
    if not is_repository(name):
        raise FileNotFoundError(
            f"{name} is neither a local directory nor a Hub repository (owner/name)"
        )


def fetch(name: str, patterns: list[str], revision: str | None = None) -> Path:
    """The directory ``name``, or the Hub repository ``name`` downloaded into the cache.

    Of a repository, only top-level files and those in ``checkpoints/`` are taken.

    Raises:
        FileNotFoundError: if ``name`` is neither.
        OSError: if the download fails.
    """
    path = local_path(name)
    if path.exists():
        return path
    _check_name(name)
    inner = any(pattern.startswith("checkpoints/") for pattern in patterns)
    with _hub_errors(name, revision):
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=None if inner else "*/*",
            )
        )


def fetch_first(name: str, files: Sequence[str]) -> Path:
    """The first of ``files`` that the directory or Hub repository ``name`` has.

    Raises:
        FileNotFoundError: if ``name`` is neither, or has none of them.
        OSError: if the download fails.
    """
    directory = local_path(name)
    if directory.exists():
        for file in files:
            if (directory / file).exists():
                check_inside(directory / file, directory)
                return directory / file
        raise FileNotFoundError(f"{name} has none of the files {', '.join(files)}")
    _check_name(name)
    with _hub_errors(name, None):
        offline = None
        for file in files:
            try:
                return Path(hf_hub_download(name, file))
            except RemoteEntryNotFoundError:
                continue
            except LocalEntryNotFoundError as error:
                offline = error
        if offline is not None:
            raise offline
    raise FileNotFoundError(f"{name} has none of the files {', '.join(files)}")
