"""Opens the source of a conversion, whose layout is recognised from the contents of its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_vlm.models.moxin.checkpoint import check_towers
from mlx_vlm.models.moxin.config import MODEL_TYPES
from mlx_vlm.models.moxin.towers import TOWER_NAMES

from mlx_vlm_moxin.checkpoints.action_options import NO_OPTIONS, ActionOptions
from mlx_vlm_moxin.checkpoints.messages import bounded_errors
from mlx_vlm_moxin.checkpoints.sources.action_heads import FILES as ACTION_FILES
from mlx_vlm_moxin.checkpoints.sources.action_heads import with_actions
from mlx_vlm_moxin.checkpoints.sources.base import MALFORMED, Source, malformed
from mlx_vlm_moxin.checkpoints.sources.directory import SMALL_FILES, check_directory, read_json
from mlx_vlm_moxin.checkpoints.sources.files import commit_of, fetch, is_repository
from mlx_vlm_moxin.checkpoints.sources.native import open_native
from mlx_vlm_moxin.checkpoints.sources.ominix import open_ominix
from mlx_vlm_moxin.checkpoints.sources.runs import fetch_native, is_native
from mlx_vlm_moxin.checkpoints.sources.saved import open_hf, open_own
from mlx_vlm_moxin.checkpoints.tensors import read_checkpoint

__all__ = ["Source", "open_source"]

SUPPORTED = (
    "a native Prismatic run directory, of a VLM or OpenVLA (config.json, checkpoints/*.pt), "
    "an HF-converted checkpoint (model_type 'prismatic' or 'openvla', vision_backbone.* tensors), "
    "an OminiX export (the same with split attention and quantize_config.json), "
    "or a conversion of one of these (vision_tower.* tensors)"
)


def _not_recognised(name: str, found: str) -> ValueError:
    return ValueError(f"{name} is not a Moxin checkpoint: found {found}. Supported: {SUPPORTED}")


def _listing(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _open_saved(name: str, directory: Path, config: dict[str, Any]) -> Source:
    """Open a directory with safetensors; the names of the tensors identify the layout."""
    tensors = read_checkpoint(directory)
    if not tensors:
        raise _not_recognised(name, f"no safetensors, only {_listing(directory) or 'nothing'}")
    if config.get("model_type") in MODEL_TYPES:
        check_towers(tensors, directory)
        if any(key.startswith("vision_tower.") for key in tensors):
            return open_own(directory, tensors)
        if any(".inner." in key or ".attn.q_proj." in key for key in tensors):
            return open_ominix(directory, tensors)
        if any(key.startswith("vision_backbone.") for key in tensors):
            return open_hf(directory, tensors)
    example = ", ".join(sorted(tensors)[:2])
    raise _not_recognised(
        name, f"model_type {config.get('model_type')!r} with tensors such as {example}"
    )


@bounded_errors()
def open_source(
    name: str,
    revision: str | None = None,
    towers: Mapping[str, str | None] | None = None,
    llm: str | None = None,
    actions: ActionOptions = NO_OPTIONS,
) -> Source:
    """Open a local directory or Hub repository without reading any tensor.

    Args:
        name: local directory, Hub repository, or folder in one.
        revision: branch, tag or commit of a Hub repository.
        towers: weights of vision towers by the towers' names, for native runs; see
            ``native.open_native``.
        llm: the language model's config and tokenizer, for native runs.
        actions: the user's settings of an action model.

    Raises:
        FileNotFoundError, OSError, ValueError: one line that says what is wrong.
    """
    directory = fetch(name, SMALL_FILES, revision)
    if not directory.is_dir():
        raise ValueError(f"{name} is a file; give the directory that contains the checkpoint")
    check_directory(directory)
    if not (directory / "config.json").exists():
        raise _not_recognised(name, f"no config.json, only {_listing(directory) or 'nothing'}")
    config = read_json(directory / "config.json")
    is_run = is_native(config)
    if is_repository(name):
        # Read the weights from the same commit as the config.
        revision = commit_of(name, directory)
    if is_run:
        directory = fetch_native(name, revision)
    else:
        directory = fetch(name, [*SMALL_FILES, "*.safetensors", *ACTION_FILES], revision)
    check_directory(directory)
    towers = towers or {}
    if not is_run and (llm or any(towers.values())):
        options = ", ".join(f"--{tower}" for tower in TOWER_NAMES)
        raise ValueError(f"{options} and --llm are for native checkpoints, which {name} is not")
    try:
        if is_run:
            source = open_native(directory, towers, llm)
        else:
            source = _open_saved(name, directory, config)
        return with_actions(source, actions)
    except MALFORMED as error:
        raise ValueError(malformed(name, error)) from error
