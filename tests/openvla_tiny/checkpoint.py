"""Writing a trained model as an OpenVLA checkpoint in the published layout, in bfloat16."""

from pathlib import Path

from mlx_vlm.models.moxin import Model
from moxin_tiny.checkpoint import write_checkpoint
from moxin_tiny.texts import PAD, SPACE
from tokenizers import Tokenizer

from .architecture import source_config


def save_checkpoint(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights, configuration, statistics, preprocessor and tokenizer into ``folder``."""
    config = source_config(tokenizer.token_to_id(PAD), tokenizer.token_to_id(SPACE))
    settings = {"config.json": config, "dataset_statistics.json": config["norm_stats"]}
    write_checkpoint(model, tokenizer, folder, settings)
