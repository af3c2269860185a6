"""Saving a loaded model as a checkpoint that stock mlx-vlm loads."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin import Model
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from mlx_vlm.models.moxin.weights import check_weights

from mlx_vlm_moxin.checkpoints.card import Card
from mlx_vlm_moxin.checkpoints.layer_settings import quantization_of
from mlx_vlm_moxin.checkpoints.provenance import read_provenance
from mlx_vlm_moxin.checkpoints.safetensors_writer import write_weights
from mlx_vlm_moxin.checkpoints.settings_files import check_output, write_settings
from mlx_vlm_moxin.checkpoints.sources.saved import complete_generation_config
from mlx_vlm_moxin.checkpoints.staging import staged


def save_checkpoint(
    model: nn.Module,
    processor: MoxinProcessor,
    path: str | Path,
    overwrite: bool = False,
    *,
    made: str,
    relation: str | None = None,
) -> None:
    """``save_quantized`` with another model card.

    Args:
        made: what was done to the model, see ``card.Card``.
        relation: how its weights differ from those that were loaded, as the Hub calls it.
    """
    target = Path(path).expanduser()
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; give another path or overwrite=True")
    weights: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    if any("lora" in name for name in weights):
        raise ValueError("The model has an adapter; fuse it with the weights before saving")
    config = model.config
    check_weights(weights, Model(config))
    quantization = quantization_of(model)
    generation_config = complete_generation_config(config.generation_config or {}, config)
    provenance = read_provenance(str(model.model_path), Path(model.model_path))
    if relation is not None:
        provenance = replace(provenance, relation=relation)
    with staged(target, overwrite) as directory:
        write_weights(directory, weights, weights.items())
        write_settings(directory, config, quantization, processor, generation_config)
        Card(provenance, config, quantization, made=made).write(directory)
        check_output(directory)


def save_quantized(
    model: nn.Module, processor: MoxinProcessor, path: str | Path, overwrite: bool = False
) -> None:
    """Write ``model``, quantised or not, into a directory that mlx-vlm loads.

    The directory appears only when it is complete: weights, config.json, tokenizer, processor,
    model card.

    Args:
        path: the directory to make.
        overwrite: replace an existing model.

    Raises:
        FileExistsError: if ``path`` exists and is not to be replaced.
        ValueError: if the model has parameters that a checkpoint has no place for, such as
            an adapter's.
        OSError: if the disk is full or fails.
    """
    save_checkpoint(model, processor, path, overwrite, made="Saved as MLX weights")
