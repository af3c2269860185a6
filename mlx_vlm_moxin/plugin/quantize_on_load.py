"""``--quantize`` for mlx-vlm's commands.

Each of them loads through ``mlx_vlm.utils.load`` in this process, and ``load`` looks up
``load_model`` in its module, so one name is replaced.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_vlm import utils
from mlx_vlm.models.moxin import Model
from mlx_vlm.models.moxin.config import MODEL_TYPES

from mlx_vlm_moxin.checkpoints.action_options import NO_OPTIONS, ActionOptions
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.sources import open_source
from mlx_vlm_moxin.checkpoints.sources.action_heads import FILES as ACTION_FILES
from mlx_vlm_moxin.checkpoints.sources.files import fetch
from mlx_vlm_moxin.library.load import load_model as load_moxin
from mlx_vlm_moxin.library.load import model_type
from mlx_vlm_moxin.plugin import command_options

# Directory of a repository's commit in the Hub's cache.
_SNAPSHOT = re.compile(r"/models--(.+?)--(.+)/snapshots/(\w+)$")


def _is_drafter(model_path: Path) -> bool:
    """Whether the model is a drafter for another one (speculative decoding)."""
    architecture, _ = utils.get_model_and_args(utils.load_config(model_path), model_path)
    return architecture.__name__.startswith("mlx_vlm.speculative.")


def fetch_action_parts(model_path: Path, model_type: str) -> None:
    """Download OpenVLA-OFT's parts too, if ``model_path`` is a Hub repository in the cache.

    mlx-vlm downloads no ``.pt`` files, and without them the model would run as a different one.
    """
    repository = _SNAPSHOT.search(model_path.as_posix())
    if model_type == "openvla" and repository is not None:
        fetch(f"{repository[1]}/{repository[2]}", ACTION_FILES, repository[3])


def load_model(
    original: Callable[..., nn.Module],
    options: QuantizeOptions,
    actions: ActionOptions = NO_OPTIONS,
) -> Callable[..., nn.Module]:
    """``mlx_vlm.utils.load_model`` that loads Moxin quantised, and OminiX exports.

    Args:
        original: the function, used for other models. With ``--quantize`` these are an error,
            except drafters.
        options: options for quantising Moxin.
        actions: settings that the files of an action model lack.
    """

    def load(model_path: Path, lazy: bool = False, **kwargs: Any) -> nn.Module:
        found = model_type(model_path)
        if found is None:
            raise ValueError(f"{model_path / 'config.json'} names no model_type")
        if found in MODEL_TYPES:
            fetch_action_parts(model_path, found)
            source = open_source(str(model_path), actions=actions)
            command_options.check(Model(source.config), source.quantization)
            return load_moxin(model_path, lazy, options, actions, **kwargs)
        if options.quantize and not _is_drafter(model_path):
            raise ValueError(
                f"--quantize is for Moxin, and {model_path} is a {found!r} model; "
                "quantise it with mlx_vlm.convert -q"
            )
        return original(model_path, lazy, **kwargs)

    return load
