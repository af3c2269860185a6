"""Writing a trained model as an OpenVLA checkpoint in the published layout, in bfloat16."""

import json
from pathlib import Path

import mlx.core as mx
from mlx_vlm.models.moxin import Model
from moxin_tiny.checkpoint import source_weights
from moxin_tiny.texts import BOS_ID, EOS_ID, PAD, SPACE, tokenizer_files
from support import preprocessor_config
from tokenizers import Tokenizer

from .architecture import IMAGE_SIZE, source_config


def save_checkpoint(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights, configuration, statistics, preprocessor and tokenizer into ``folder``."""
    pad, space = tokenizer.token_to_id(PAD), tokenizer.token_to_id(SPACE)
    config = source_config(pad, space)
    files = {
        "config.json": config,
        "dataset_statistics.json": config["norm_stats"],
        "preprocessor_config.json": preprocessor_config(IMAGE_SIZE),
        "processor_config.json": {"processor_class": "PrismaticProcessor"},
        "generation_config.json": {
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": pad,
        },
    }
    texts = {name: json.dumps(content, indent=2) for name, content in files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (texts | tokenizer_files(tokenizer)).items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    file = str(folder / "model.safetensors")
    mx.save_safetensors(file, source_weights(model), metadata={"format": "pt"})
