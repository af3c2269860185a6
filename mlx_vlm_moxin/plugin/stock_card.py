"""The model card of ``mlx_vlm.convert`` for Moxin, and its upload.

mlx-vlm's card has no text until the upload, and then says to install only mlx-vlm, which cannot
load the model.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

from huggingface_hub import hf_hub_download
from mlx_vlm.models.moxin.config import MODEL_TYPES, ModelConfig

from mlx_vlm_moxin.plugin.in_place import replace_code


def _moxin_config(directory: Path) -> dict[str, Any] | None:
    """config.json of a directory with Moxin; None for another model."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return config if config.get("model_type") in MODEL_TYPES else None


def _card_directory(repository: str | Path | None, directory: Path) -> Path:
    """Directory of a Hub repository's card; ``directory`` if it cannot be downloaded."""
    try:
        return Path(hf_hub_download(str(repository), "README.md")).parent
    # A missing card must not end a conversion.
    except Exception:
        return directory


def create_model_card(function: FunctionType) -> FunctionType:
    """``mlx_vlm.utils.create_model_card`` that writes our card for Moxin."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def create(path: str | Path, hf_path: str | Path | None = None) -> None:
            directory = Path(path)
            content = _moxin_config(directory)
            if content is None:
                return original(path, hf_path)
            # Imported here: the card's module imports the model, whose import imports this module.
            from mlx_vlm_moxin.checkpoints.card import Card
            from mlx_vlm_moxin.checkpoints.provenance import read_provenance

            config = ModelConfig.from_dict(content)
            if config.timm_model_ids is not None:
                config.model_path = directory
            name = "." if hf_path is None else str(hf_path)
            source = directory if hf_path is None else _card_directory(hf_path, directory)
            return Card(
                read_provenance(name, source),
                config,
                content.get("quantization"),
                made="Converted to MLX by mlx-vlm",
                model_type=content["model_type"],
            ).write(directory)

        return create

    return replace_code(function, make)


def upload_to_hub(function: FunctionType) -> FunctionType:
    """``mlx_vlm.utils.upload_to_hub`` that keeps our card, with the repository's name in it."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def upload(path: str | Path, upload_repo: str) -> None:
            if _moxin_config(Path(path)) is None:
                return original(path, upload_repo)
            from mlx_vlm_moxin.conversion.upload import upload as upload_directory

            return upload_directory(Path(path), upload_repo)

        return upload

    return replace_code(function, make)
