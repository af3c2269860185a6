"""Writing a trained model as an HF-converted Prismatic checkpoint, in bfloat16."""

import json
import re
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin import Model
from mlx_vlm.models.moxin.vision import Block
from mlx_vlm.models.moxin.weights import TOWER_PREFIXES
from support import preprocessor_config
from tokenizers import Tokenizer

from .architecture import IMAGE_SIZE, source_config
from .texts import BOS_ID, EOS_ID, PAD, tokenizer_files

TOWERS = ("dino", "siglip")


def source_weights(model: Model) -> dict[str, mx.array]:
    """The model's weights in bfloat16, under the names and in the layout of the source.

    As in the published checkpoints, each tower also has its last block and final norm,
    which the features do not pass through; here they are untrained.
    """
    weights = dict(tree_flatten(model.parameters()))
    for name in TOWERS:
        tower = getattr(model.vision_tower, name)
        prefix = f"vision_tower.{name}."
        block = f"{prefix}blocks.{tower.config.num_blocks}."
        unused = tree_flatten(Block(tower.config).parameters())
        weights.update({block + part: value for part, value in unused})
        weights[f"{prefix}norm.weight"] = mx.ones((tower.config.hidden_size,))
        weights[f"{prefix}norm.bias"] = mx.zeros((tower.config.hidden_size,))
    prefixes = {f"vision_tower.{name}.": source for name, source in zip(TOWERS, TOWER_PREFIXES)}
    prefixes["multi_modal_projector."] = "projector."
    converted = {}
    for name, value in weights.items():
        if name.endswith("patch_embed.proj.weight"):
            value = value.transpose(0, 3, 1, 2)
        for ours, source in prefixes.items():
            if name.startswith(ours):
                name = source + name[len(ours) :]
                break
        name = re.sub(r"\.(ls[12])\.gamma$", r".\1.scale_factor", name)
        converted[name] = mx.contiguous(value.astype(mx.bfloat16))
    return converted


def save_checkpoint(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights, configuration, preprocessor and tokenizer into ``folder``."""
    settings = {"config.json": source_config(tokenizer.token_to_id(PAD))}
    write_checkpoint(model, tokenizer, folder, settings)


def write_checkpoint(
    model: Model, tokenizer: Tokenizer, folder: Path, settings: dict[str, dict]
) -> None:
    """Write a checkpoint of any model with these towers into ``folder``.

    Args:
        settings: contents of config.json and of JSON files that only this model has.
    """
    pad = tokenizer.token_to_id(PAD)
    files = {
        **settings,
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
