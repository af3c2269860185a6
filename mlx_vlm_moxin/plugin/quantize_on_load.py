"""``--quantize`` for mlx-vlm's own commands.

Each of them loads through ``mlx_vlm.utils.load``, in this process or in a thread of it,
and ``load`` finds ``load_model`` in its own module: one name to replace.
"""

from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_vlm import utils

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.library.load import load_model, model_type
from mlx_vlm_moxin.plugin.model_tables import MODEL_TYPES


def _is_drafter(model_path: Path) -> bool:
    """Whether the model only drafts tokens for another one (speculative decoding)."""
    architecture, _ = utils.get_model_and_args(utils.load_config(model_path), model_path)
    return architecture.__name__.startswith("mlx_vlm.speculative.")


def install(options: QuantizeOptions) -> None:
    """From now on, mlx-vlm loads Moxin quantised as ``options`` say, and OminiX exports.

    Other models load as ever. If the command was to quantise one, it ends with an error,
    drafters aside.
    """
    stock_load_model = utils.load_model

    def load_any_model(model_path: Path, lazy: bool = False, **kwargs: Any) -> nn.Module:
        found = model_type(model_path)
        if found in MODEL_TYPES:
            return load_model(model_path, lazy, options, **kwargs)
        if options.quantize and not _is_drafter(model_path):
            raise ValueError(
                f"--quantize is for Moxin, and {model_path} is a {found!r} model; "
                "quantise it with mlx_vlm.convert -q"
            )
        return stock_load_model(model_path, lazy, **kwargs)

    utils.load_model = load_any_model
