"""What the ids in a Prismatic checkpoint's config.json stand for, and which are supported.

HF-converted checkpoints (``model_type`` ``prismatic`` or ``openvla``) and native runs name
their projector and language model alike; HF-converted ones name timm's towers.
"""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from .towers import TIMM_MODELS, TOWER_NAMES, TimmModel
from .vision_config import PROJECTOR_LAYERS

# llm_backbone_id -> name of the prompt that the model was trained with; the first match counts.
PROMPT_FORMATS = {
    "vicuna-*": "vicuna",
    "llama2-*-chat": "llama2-chat",
    "mistral-*-instruct": "mistral-instruct",
    "*-pure": "pure",
}
DECODERS = ("llama", "mistral")


def projector_kind(arch_specifier: Any) -> str:
    """The projector that an ``arch_specifier`` names: what precedes ``+`` is about training."""
    return str(arch_specifier).rpartition("+")[2]


def prompt_format(llm_backbone_id: Any) -> str | None:
    """Name of the prompt of a language model; None if it is not supported."""
    matches = (
        name
        for pattern, name in PROMPT_FORMATS.items()
        if fnmatchcase(str(llm_backbone_id), pattern)
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
    """
    models = [TIMM_MODELS[timm_id] for timm_id in timm_ids]
    if activations:
        models = [
            replace(model, config={**model.config, "activation": activation or "gelu"})
            for model, activation in zip(models, activations)
        ]
    return models


def _are_towers(ids: list[Any]) -> bool:
    """Whether ``ids`` are one or two towers, in the order in which features are joined."""
    if not all(isinstance(timm_id, str) and timm_id in TIMM_MODELS for timm_id in ids):
        return False
    places = [TOWER_NAMES.index(TIMM_MODELS[timm_id].name) for timm_id in ids]
    return len(places) in (1, 2) and places == sorted({*places})


def check_supported(params: dict[str, Any]) -> None:
    """Refuse the config.json of an HF-converted checkpoint that cannot be run.

    Raises:
        ValueError: what was found and what is supported.
    """
    text_config = params.get("text_config") or {}
    found = {
        "timm_model_ids": params.get("timm_model_ids"),
        "arch_specifier": params.get("arch_specifier"),
        "llm_backbone_id": params.get("llm_backbone_id"),
        "text_config.model_type": text_config.get("model_type"),
    }
    ids = found["timm_model_ids"]
    is_supported = {
        "timm_model_ids": isinstance(ids, list) and _are_towers(ids),
        "arch_specifier": projector_kind(found["arch_specifier"]) in PROJECTOR_LAYERS,
        "llm_backbone_id": prompt_format(found["llm_backbone_id"]) is not None,
        "text_config.model_type": found["text_config.model_type"] in DECODERS,
    }
    refused = [
        f"{name} {found[name]!r}" for name, supported in is_supported.items() if not supported
    ]
    if refused:
        raise ValueError(
            f"This Prismatic checkpoint is not supported: its config.json has "
            f"{' and '.join(refused)[:300]}. Supported: timm_model_ids one or two of "
            f"{', '.join(TIMM_MODELS)}; arch_specifier ending in {', '.join(PROJECTOR_LAYERS)}; "
            f"llm_backbone_id {', '.join(PROMPT_FORMATS)}; text_config.model_type "
            f"{', '.join(DECODERS)}."
        )
