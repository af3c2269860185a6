"""Reads a source's directory safely: bounded JSON, and no file outside of the directory."""

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from mlx_vlm.models.moxin.checkpoint import INDEX_FILE

from mlx_vlm_moxin.checkpoints.messages import format_size
from mlx_vlm_moxin.checkpoints.regular_files import check_regular

# Every file except weights that a conversion may read.
SMALL_FILES = ["*.json", "*.jinja", "README.md"]
# The safetensors index of a checkpoint with 2,000 tensors has about 200 kB.
MAX_JSON_BYTES = 4 << 20
_SHARD = re.compile(r"[^/\\]+\.safetensors")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that contains a JSON object.

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
        # Python accepts NaN and Infinity, which are not JSON.
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains {type(content).__name__} instead of a JSON object")
    return content


def check_inside(path: Path, directory: Path) -> None:
    """Refuse a symbolic link that leaves its directory, except in the Hub's cache.

    Raises:
        ValueError: naming the link and its target.
    """
    root, target = directory.resolve(), path.resolve()
    allowed = [root]
    # The snapshot, or a model's folder in it.
    for parent in (root.parent, root.parent.parent):
        if parent.name == "snapshots":
            allowed.append(parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise ValueError(
            f"{path} is a link to {target}, outside of its directory; "
            "if you trust it, put a copy of the file in its place"
        )


def check_index(directory: Path) -> None:
    """Refuse a safetensors index that names files outside its directory.

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
    """Apply ``check_inside`` and ``check_regular`` to all files that are read, and ``check_index``.

    Raises:
        ValueError: from these functions.
    """
    for pattern in [*SMALL_FILES, "*.safetensors", "*.pt", "checkpoints", "checkpoints/*"]:
        for path in directory.glob(pattern):
            check_inside(path, directory)
            if path.exists() and not path.is_dir():
                check_regular(path)
    check_index(directory)
