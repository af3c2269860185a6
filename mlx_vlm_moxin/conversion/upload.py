"""Uploads a converted model to the Hugging Face Hub; a failed upload can be resumed.

``HfApi.upload_folder`` does the work. When it is run again after a failure, it sends only what
is missing: the Hub reports which large files it already has (with hf-xet, which parts of them),
and nothing appears in the repository before the commit. ``upload_large_folder`` is meant for
resuming, but it leaves a cache in the uploaded directory, commits piece by piece, so that an
incomplete repository is visible, and no longer exists in huggingface_hub 2.
"""

import argparse
import gc
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    logging,
    validate_repo_id,
)

from mlx_vlm_moxin import __version__
from mlx_vlm_moxin.checkpoints.card import name_repository
from mlx_vlm_moxin.checkpoints.messages import causes, one_line, print_error

COMMAND = ["python", "-m", "mlx_vlm_moxin", "upload"]

# The files of a model; anything else in its directory belongs to the user.
UPLOADED = ("*.json", "*.safetensors", "*.jinja", "*.model", "README.md")
# Shards that an earlier upload left would be loaded too: mlx-vlm loads every safetensors file.
REPLACED = ("model*.safetensors", "model.safetensors.index.json")
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
LOG_IN = f"run `hf auth login`, or set HF_TOKEN, with a token that may write ({TOKENS_PAGE})"


class UploadError(OSError):
    """A failed upload; the message says why it failed and how to resume it."""


def _check(directory: Path, repo_id: str) -> None:
    if not (directory / "config.json").is_file() or not any(directory.glob("*.safetensors")):
        raise UploadError(
            f"{directory} holds no converted model (config.json and *.safetensors); nothing was "
            "uploaded"
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UploadError(f"{error} Give it as user-or-organisation/name.") from None


def _status(error: BaseException) -> int | None:
    """The HTTP status that ``error`` reports; hf-xet gives it only in the message."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code
    found = re.search(r"HTTP status \w+ error \((\d{3})", str(error))
    return int(found[1]) if found else None


def _reason(error: BaseException, repo_id: str) -> str:
    """What went wrong, and what to do before trying again."""
    # huggingface_hub wraps the failure of a single file; the HTTP response is further down.
    chain = list(causes(error))
    for inner in chain:
        status = _status(inner)
        if status == 401:
            return f"the Hub does not accept this token (401); {LOG_IN}"
        if status == 403:
            return f"this token may not write to {repo_id} (403); {LOG_IN}"
        if status is not None:
            return f"the Hub answered {status} ({inner})"
        if isinstance(inner, (HTTPError, ConnectionError)):
            detail = str(inner) or type(inner).__name__
            return f"the connection to {constants.ENDPOINT} failed ({detail})"
    texts = dict.fromkeys(str(inner) or type(inner).__name__ for inner in (error, chain[-1]))
    return ": ".join(texts)


@contextmanager
def _progress(quiet: bool) -> Iterator[None]:
    """huggingface_hub's progress bars and notes on retries, unless ``quiet``."""
    had_bars, verbosity = not are_progress_bars_disabled(), logging.get_verbosity()
    if quiet:
        disable_progress_bars()
        logging.set_verbosity_error()
    try:
        yield
    finally:
        if quiet and had_bars:
            enable_progress_bars()
        logging.set_verbosity(verbosity)


def upload(directory: Path, repo_id: str, quiet: bool = False) -> None:
    """Upload a converted model, creating the repository if there is none.

    The repository's name is put on the model card, if this package wrote the card.

    Weight files from an earlier upload that this model does not have are removed from the
    repository in the same commit. Other files there are kept.

    Args:
        directory: the converted model.
        repo_id: ``user-or-organisation/name``.
        quiet: no progress bars and no closing line.

    Raises:
        UploadError: one line with the reason and the next step; it never contains the token.
    """
    directory = Path(directory)
    _check(directory, repo_id)
    name_repository(directory, repo_id)
    resume = shlex.join([*COMMAND, str(directory), repo_id])
    token = reason = None
    try:
        token = get_token()
        if token is None:
            raise UploadError(f"there is no Hugging Face token; {LOG_IN}")
        api = HfApi(token=token, library_name="mlx-vlm-moxin", library_version=__version__)
        with _progress(quiet):
            url = api.create_repo(repo_id, exist_ok=True)
            api.upload_folder(
                repo_id=url.repo_id,
                folder_path=directory,
                commit_message="Upload with mlx-vlm-moxin",
                allow_patterns=list(UPLOADED),
                ignore_patterns=["*/*"],
                delete_patterns=list(REPLACED),
            )
    # huggingface_hub and hf-xet raise many types; after any of them the local model is intact.
    except Exception as error:
        reason = _reason(error, repo_id)
        if token is not None:
            reason = reason.replace(token, "[token]")
        reason = one_line(reason, limit=200).rstrip(".")
    if reason is not None:
        # The client's error refers to unfinished progress bars, which print again when collected.
        gc.collect()
        raise UploadError(
            f"Upload to {repo_id} failed: {reason}. The model is whole in {directory}; "
            f"run `{resume}` to resume; what was sent already is not sent again"
        )
    if not quiet:
        print(f"Uploaded to {url}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m mlx_vlm_moxin upload DIRECTORY REPO``; returns the exit status.

    Bad input ends with one line on standard error and status 1.
    """
    parser = argparse.ArgumentParser(
        prog=" ".join(COMMAND),
        description="Upload a converted model to the Hugging Face Hub, with the repository's "
        "name on its model card. After a failure, run it again: it sends only what is missing.",
    )
    parser.add_argument("directory", type=Path, help="a converted model")
    parser.add_argument("repo_id", help="user-or-organisation/name on the Hub")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    arguments = parser.parse_args(argv)
    try:
        upload(arguments.directory, arguments.repo_id, arguments.quiet)
    except UploadError as error:
        return print_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
