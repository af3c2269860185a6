"""Native Prismatic run directories (``moxin-org/Moxin-7B-VLM``).

``checkpoints/latest-checkpoint.pt`` holds the projector and the language model; vision
towers that were not trained are timm's own, and tokenizer and language config are those
of the language model. Reference: ``prismatic/models`` of github moxin-org/Moxin-VLM.
"""

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlx_vlm.models.moxin.config import ModelConfig, TextConfig
from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from mlx_vlm.models.moxin.prompts import chat_template
from mlx_vlm.models.moxin.towers import DINO_ID, SIGLIP_ID, TIMM_MODELS
from transformers import PreTrainedTokenizerFast

from mlx_vlm_moxin.checkpoints.pt_file import read_pt
from mlx_vlm_moxin.checkpoints.sources.base import Source, Tensors, our_tensors
from mlx_vlm_moxin.checkpoints.sources.files import SMALL_FILES, check_directory, fetch, read_json
from mlx_vlm_moxin.checkpoints.sources.towers import (
    DINO_REPOSITORY,
    SIGLIP_REPOSITORY,
    read_tower,
    resample,
)
from mlx_vlm_moxin.checkpoints.tensors import LazyTensor

CHECKPOINT = "checkpoints/latest-checkpoint.pt"
FILES = ["config.json", CHECKPOINT]
LLM_REPOSITORY = "moxin-org/Moxin-7B-Instruct"
# The same kinds that config.py accepts of an HF-converted checkpoint.
SUPPORTED = {
    "vision_backbone_id": "dinosiglip-vit-so-224px",
    "arch_specifier": "*fused-gelu-mlp",
    "llm_backbone_id": "*-pure",
}
PAD_TOKEN = "<PAD>"
# prismatic/models/backbones/llm/base_llm.py: resize_token_embeddings(pad_to_multiple_of=64).
VOCAB_MULTIPLE = 64

_DINO, _SIGLIP = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
# Prefix in the checkpoint's parts -> prefix in the HF-converted layout.
PREFIXES = {
    "projector": {
        "projector.0.": "projector.fc1.",
        "projector.2.": "projector.fc2.",
        "projector.4.": "projector.fc3.",
    },
    "llm_backbone": {"llm.": "language_model."},
    "vision_backbone": {"dino_featurizer.": _DINO, "siglip_featurizer.": _SIGLIP},
}


def hf_name(part: str, name: str) -> str:
    """Name in the HF-converted layout of tensor ``name`` in a part of the checkpoint.

    Raises:
        ValueError: if no rule covers it.
    """
    for prefix, ours in PREFIXES[part].items():
        if name.startswith(prefix):
            return ours + name[len(prefix) :]
    raise ValueError(f"The checkpoint's {part} has an unknown tensor {name}")


def _read_parts(path: Path) -> tuple[Tensors, bool]:
    """Tensors of the run's own checkpoint, and whether its vision towers are among them."""
    content = read_pt(path)
    parts = content.get("model") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not {"projector", "llm_backbone"} <= parts.keys():
        found = list(content)[:5] if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} is no Prismatic checkpoint: expected 'model' with 'projector' and "
            f"'llm_backbone', found {found}"
        )
    tensors: Tensors = {}
    for part in PREFIXES:
        content = parts.get(part) or {}
        if not isinstance(content, dict):
            raise ValueError(f"{path}: {part} is no state dict")
        for name, tensor in content.items():
            if not isinstance(name, str) or not isinstance(tensor, LazyTensor):
                raise ValueError(f"{path}: {part} holds {name!r}, which is no tensor")
            tensors[hf_name(part, name)] = tensor
    return tensors, bool(parts.get("vision_backbone"))


def _check_supported(run: dict[str, Any]) -> None:
    found = {name: str(run.get(name)) for name in SUPPORTED}
    if not all(fnmatchcase(found[name], pattern) for name, pattern in SUPPORTED.items()):
        raise ValueError(f"This Prismatic run is not supported: it is {found}, not {SUPPORTED}")


def _check_towers(config: ModelConfig) -> None:
    """Refuse towers of another kind or, at full width, for another picture size."""
    vision = config.vision_config
    for name, timm_id in (("dino", DINO_ID), ("siglip", SIGLIP_ID)):
        tower, preset = getattr(vision, name), TIMM_MODELS[timm_id].tower_config()
        kind = ("class_token", "num_register_tokens", "layer_scale")
        if any(getattr(tower, key) != getattr(preset, key) for key in kind):
            raise ValueError(f"The weights given for --{name} are not those of {timm_id}")
    pixels = int(re.search(r"(\d+)px$", SUPPORTED["vision_backbone_id"])[1])
    is_full_width = vision.siglip.hidden_size == TIMM_MODELS[SIGLIP_ID].tower_config().hidden_size
    if is_full_width and vision.image_size != pixels:
        raise ValueError(
            f"The weights given for --siglip are for pictures of {vision.image_size} pixels; "
            f"Moxin needs those for {pixels}"
        )


def _read_tokenizer(directory: Path, max_length: int) -> PreTrainedTokenizerFast:
    """The language model's tokenizer with ``<PAD>`` behind its vocabulary."""
    if not (directory / "tokenizer.json").is_file():
        raise FileNotFoundError(f"No tokenizer.json in {directory}; give --llm a directory with it")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, padding_side="left")
    except Exception as error:
        # The tokenizers library raises bare exceptions on malformed files.
        raise ValueError(f"The tokenizer in {directory} cannot be read ({error})") from error
    if tokenizer.bos_token is None or tokenizer.eos_token is None:
        raise ValueError(f"The tokenizer in {directory} has no bos_token or no eos_token")
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.model_max_length = max_length
    tokenizer.chat_template = chat_template("pure")
    return tokenizer


def _make_config(llm: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> ModelConfig:
    vocab_size = -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return ModelConfig(
        text_config=TextConfig.from_dict({**llm, "vocab_size": vocab_size}),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        timm_model_ids=[DINO_ID, SIGLIP_ID],
        arch_specifier="fused-gelu-mlp",
    )


def open_native(
    directory: Path, dino: str | None = None, siglip: str | None = None, llm: str | None = None
) -> Source:
    """A native run directory.

    Args:
        dino, siglip: towers' weights (file, directory or Hub repository); timm's
            repositories if not given. Not used if the checkpoint has its own towers.
        llm: the language model's config and tokenizer (directory or Hub repository).

    Raises:
        FileNotFoundError, OSError, ValueError: what is missing, damaged or not supported.
    """
    run = read_json(directory / "config.json")["model"]
    _check_supported(run)
    if not (directory / CHECKPOINT).exists():
        raise FileNotFoundError(f"{directory} has no {CHECKPOINT}")
    tensors, has_towers = _read_parts(directory / CHECKPOINT)
    if not has_towers:
        for prefix, name in (
            (_DINO, dino or DINO_REPOSITORY),
            (_SIGLIP, siglip or SIGLIP_REPOSITORY),
        ):
            tensors.update((prefix + key, tensor) for key, tensor in read_tower(name).items())
    llm_directory = fetch(llm or LLM_REPOSITORY, SMALL_FILES)
    check_directory(llm_directory)
    tokenizer = _read_tokenizer(llm_directory, run.get("llm_max_length", 2048))
    config = _make_config(read_json(llm_directory / "config.json"), tokenizer)
    try:
        num_patches = tensors[_SIGLIP + "pos_embed"].shape[1]
        tensors[_DINO + "pos_embed"] = resample(tensors[_DINO + "pos_embed"], num_patches)
        config.set_sizes({name: tensor.shape for name, tensor in tensors.items()})
    except (KeyError, IndexError) as error:
        raise ValueError(f"A vision tower lacks a tensor or has a wrong shape ({error})") from error
    _check_towers(config)
    image_processor = MoxinImageProcessor(
        config.vision_config.image_size, run.get("image_resize_strategy", "resize-naive")
    )
    return Source(
        kind="a native Prismatic run directory",
        directory=directory,
        is_loadable=False,
        config=config,
        tensors=our_tensors(tensors, config.vision_config),
        processor=MoxinProcessor(
            image_processor,
            tokenizer,
            image_token_index=config.image_token_index,
            vocab_size=config.text_config.vocab_size,
            num_image_tokens=config.vision_config.num_patches,
        ),
        generation_config={
            f"{name}_token_id": getattr(config, f"{name}_token_id")
            for name in ("bos", "eos", "pad")
        },
        dtype="bfloat16",
    )
