"""The meaning of the ids in a Prismatic checkpoint's config.json, and which are supported.

HF-converted checkpoints (``model_type`` ``prismatic`` or ``openvla``) and native runs name
their projector and language model alike; the former name timm's towers, the latter a pair of
them. Reference: ``prismatic/models/`` of github TRI-ML/prismatic-vlms and
``prismatic/extern/hf/configuration_prismatic.py`` of github openvla/openvla.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from .towers import DINO_ID, SIGLIP_ID, TIMM_MODELS, TOWER_NAMES, TimmModel
from .vision_config import PROJECTOR_LAYERS

_SIGLIP_384_ID = "vit_so400m_patch14_siglip_384"
_CLIP_ID = "vit_large_patch14_clip_224.openai"
_CLIP_336_ID = "vit_large_patch14_clip_336.openai"
_IN1K_ID = "vit_large_patch16_224.augreg_in21k_ft_in1k"

# vision_backbone_id of a native run -> timm's id and activation of each tower. Next to DINOv2,
# CLIP has the exact GELU there; HF-converted checkpoints name their activations.
VISION_BACKBONES = {
    "dinov2-vit-l": {DINO_ID: "gelu"},
    "siglip-vit-so400m": {SIGLIP_ID: "gelu"},
    "siglip-vit-so400m-384px": {_SIGLIP_384_ID: "gelu"},
    "clip-vit-l": {_CLIP_ID: "quick_gelu"},
    "clip-vit-l-336px": {_CLIP_336_ID: "quick_gelu"},
    "in1k-vit-l": {_IN1K_ID: "gelu"},
    "dinoclip-vit-l-336px": {DINO_ID: "gelu", _CLIP_336_ID: "gelu"},
    "dinosiglip-vit-so-224px": {DINO_ID: "gelu", SIGLIP_ID: "gelu"},
    "dinosiglip-vit-so-384px": {DINO_ID: "gelu", _SIGLIP_384_ID: "gelu"},
}
# llm_backbone_id -> name of the prompt that the model was trained with; the first match is used.
PROMPTS = {
    "vicuna-*": "vicuna",
    "llama2-*-chat": "llama2-chat",
    "mistral-*-instruct": "mistral-instruct",
    "*-pure": "pure",
}
DECODERS = ("llama", "mistral")


def projector_kind(arch_specifier: Any) -> str:
    """The projector in an ``arch_specifier``; the part before ``+`` is about training."""
    return str(arch_specifier).rpartition("+")[2]


def prompt_format(llm_backbone_id: Any) -> str | None:
    """Name of the prompt of a language model; None if it is not supported."""
    matches = (
        name for pattern, name in PROMPTS.items() if fnmatchcase(str(llm_backbone_id), pattern)
    )
    return next(matches, None)


def tower_models(
    timm_ids: Sequence[str], activations: Sequence[str | None] | None = None
) -> list[TimmModel]:
    """The towers that a config.json names.

    Args:
        timm_ids: ``timm_model_ids``.
        activations: ``timm_override_act_layers``, None for timm's GELU; without it the towers
            have their usual ones.

    Raises:
        ValueError: if there is not one activation for each tower.
    """
    models = [TIMM_MODELS[timm_id] for timm_id in timm_ids]
    if activations:
        if len(activations) != len(models):
            raise ValueError(
                f"config.json: timm_override_act_layers has {len(activations)} entries for "
                f"{len(models)} timm_model_ids"
            )
        models = [
            replace(model, config={**model.config, "activation": activation or "gelu"})
            for model, activation in zip(models, activations)
        ]
    return models


def _are_towers(ids: Any) -> bool:
    """Whether ``ids`` are one or two towers, in the order in which features are joined."""
    if not isinstance(ids, list):
        return False
    if not all(isinstance(timm_id, str) and timm_id in TIMM_MODELS for timm_id in ids):
        return False
    places = [TOWER_NAMES.index(TIMM_MODELS[timm_id].name) for timm_id in ids]
    return len(places) in (1, 2) and places == sorted({*places})


# Setting -> whether a value is supported, and which are.
_SUPPORTED = {
    "timm_model_ids": (_are_towers, f"one or two of {', '.join(TIMM_MODELS)}"),
    "vision_backbone_id": (lambda value: str(value) in VISION_BACKBONES, VISION_BACKBONES),
    "arch_specifier": (lambda value: projector_kind(value) in PROJECTOR_LAYERS, PROJECTOR_LAYERS),
    "llm_backbone_id": (prompt_format, PROMPTS),
    "text_config.model_type": (lambda value: value in DECODERS, DECODERS),
}


def check_supported(found: Mapping[str, Any]) -> None:
    """Refuse settings of a Prismatic checkpoint that cannot be run.

    Args:
        found: values of some of ``_SUPPORTED``.

    Raises:
        ValueError: what was found and what is supported.
    """
    refused = [
        f"{name} {str(value)[:80]!r}"
        for name, value in found.items()
        if not _SUPPORTED[name][0](value)
    ]
    if refused:
        supported = [
            f"{name} {values if isinstance(values, str) else ', '.join(values)}"
            for name, (_, values) in _SUPPORTED.items()
            if name in found
        ]
        raise ValueError(
            "This Prismatic checkpoint is not supported: its config.json has "
            f"{' and '.join(refused)}. Supported: {'; '.join(supported)}."
        )
