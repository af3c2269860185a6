"""The names of sources: local directories, Hub repositories and their downloads."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mlx_vlm_moxin.checkpoints.sources.directory import check_inside

# owner/name, optionally followed by the folder of a Prismatic model, named by its id. Ids contain
# a plus sign ("llama2+7b"), which distinguishes them from a missing local path.
_REPOSITORY = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/([\w.-]+\+\w+))?")


def local_path(name: str) -> Path:
    """``name`` as a path, which need not exist."""
    return Path(name).expanduser()


def is_repository(name: str) -> bool:
    """Whether ``name`` does not exist on disk and has the form ``owner/name`` or a folder in it."""
    return not local_path(name).exists() and _REPOSITORY.fullmatch(name) is not None


def split_repository(name: str) -> tuple[str, str]:
    """Split ``name`` into Hub repository and folder.

    Returns:
        The repository's id, and the folder's name ("" for the repository itself).
    """
    match = _REPOSITORY.fullmatch(name)
    return match[1], match[2] or ""


def commit_of(name: str, directory: Path) -> str:
    """The commit of ``directory``, which ``fetch`` of ``name`` has downloaded."""
    return directory.parent.name if split_repository(name)[1] else directory.name


@contextlib.contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn every error in communication with the Hub into one line."""
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
            f"{name} is not a local directory, and the Hub has no such repository, or none that "
            "you may read (`hf auth login`)"
        ) from error
    except Exception as error:
        # The type of a connection error depends on the client's HTTP library.
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{name} is not a local directory and cannot be downloaded ({reason}); "
            "finished parts are kept, so run the same command again"
        ) from error


def check_name(name: str) -> None:
    """Refuse a name that does not exist on disk and cannot be a Hub repository.

    Raises:
        FileNotFoundError: naming it.
    """
    if not is_repository(name):
        raise FileNotFoundError(
            f"{name} is neither a local directory nor a Hub repository (owner/name, or for a "
            "model in a folder of one, for example TRI-ML/prismatic-vlms/llama2+7b)"
        )


def fetch(name: str, patterns: list[str], revision: str | None = None) -> Path:
    """The directory ``name``, or the Hub repository ``name`` downloaded into the cache.

    Only the files at the top of a repository (or of a model's folder in it) and in
    ``checkpoints/`` are downloaded.

    Args:
        name: local directory, Hub repository, or folder in one.
        patterns: file names to download.

    Raises:
        FileNotFoundError: if ``name`` is neither.
        ValueError: if ``name`` is a directory and a revision is given.
        OSError: if the download fails.
    """
    path = local_path(name)
    if path.exists():
        if revision is not None:
            raise ValueError(
                f"{name} is a local directory, which has one version: revision {revision!r} "
                "would have no effect"
            )
        return path
    check_name(name)
    repository, folder = split_repository(name)
    prefix = f"{folder}/" if folder else ""
    inner = any(pattern.startswith("checkpoints/") for pattern in patterns)
    with _hub_errors(repository, revision):
        snapshot = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[prefix + pattern for pattern in patterns],
            ignore_patterns=None if inner else f"{prefix}*/*",
        )
    directory = Path(snapshot) / folder
    if not directory.is_dir():
        raise FileNotFoundError(f"The Hub repository {repository} has no folder {folder}")
    return directory


def list_files(name: str, revision: str | None = None) -> list[str]:
    """List the files of a directory, a Hub repository or a folder in one.

    Raises:
        FileNotFoundError: if ``name`` is none of these.
        OSError: if the Hub cannot be reached.
    """
    path = local_path(name)
    if path.exists():
        return [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
    check_name(name)
    repository, folder = split_repository(name)
    with _hub_errors(repository, revision):
        files = HfApi().list_repo_files(repository, revision=revision)
    prefix = f"{folder}/" if folder else ""
    return [file.removeprefix(prefix) for file in files if file.startswith(prefix)]


def fetch_first(name: str, files: Sequence[str]) -> Path:
    """The path of the first of ``files`` that the directory or Hub repository ``name`` contains.

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
    check_name(name)
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
