"""``--model`` of this package's commands: a directory or Hub repository, else a one-line error."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_vlm_moxin.checkpoints.sources.directory import SMALL_FILES
from mlx_vlm_moxin.checkpoints.sources.files import fetch, local_path


def get_model_path(original: Callable[..., Path], **settings: Any) -> Callable[..., Path]:
    """``mlx_vlm.utils.get_model_path`` that expands ``~`` and names what is missing.

    mlx-vlm treats every name that does not exist on disk as a Hub repository, so a mistyped
    directory gives an error about the rules for repository names.

    Args:
        settings: settings of other rows of the table, ignored.
    """

    @functools.wraps(original)
    def find(path_or_hf_repo: str | Path, revision: str | None = None, **kwargs: Any) -> Path:
        name = str(path_or_hf_repo)
        if local_path(name).exists():
            return local_path(name)
        fetch(name, SMALL_FILES, revision)
        return original(name, revision, **kwargs)

    return find
