"""Rotary position embeddings: the settings for which MLX computes the same as transformers.

mlx-vlm and mlx-lm read fewer settings than transformers, have other defaults for some, and
support different kinds. Settings are completed here so that both compute what transformers
computes, or refused.

Reference: ``transformers/modeling_rope_utils.py``; ``models/rope_utils.py`` of mlx-vlm and mlx-lm.
"""

import math
from collections.abc import Mapping
from typing import Any

from .validation import CONFIG_FILE, check_setting

# Kind of RoPE -> the settings that transformers reads, and whether they must be given.
_SETTINGS: dict[str, dict[str, bool]] = {
    "default": {},
    "linear": {"factor": True},
    "llama3": {
        "factor": True,
        "low_freq_factor": True,
        "high_freq_factor": True,
        "original_max_position_embeddings": False,
    },
    "yarn": {
        "factor": True,
        "original_max_position_embeddings": False,
        "attention_factor": False,
        "beta_fast": False,
        "beta_slow": False,
        "mscale": False,
        "mscale_all_dim": False,
        "truncate": False,
    },
}
# Settings of every kind.
_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_NAME = "text_config.rope_parameters"


def _yarn_attention_factor(settings: Mapping[str, Any]) -> float:
    """The factor by which transformers multiplies queries and keys."""
    given = settings.get("attention_factor")
    if given is not None:
        return given

    def scale(mscale: float) -> float:
        factor = settings["factor"]
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, mscale_all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


def _complete_yarn(settings: dict[str, Any]) -> dict[str, Any]:
    """YaRN's settings in terms of those that MLX reads.

    MLX multiplies by ``0.1 * mscale * ln(factor) + 1`` if ``mscale_all_dim`` is 0.
    """
    attention_factor = _yarn_attention_factor(settings)
    if settings["factor"] > 1:
        mscale = (attention_factor - 1) / (0.1 * math.log(settings["factor"]))
    elif attention_factor == 1:
        mscale = 1.0
    else:
        raise ValueError(
            f"{CONFIG_FILE}: {_NAME}.attention_factor {attention_factor} needs a factor above 1"
        )
    if settings.get("truncate") not in (None, True):
        raise ValueError(f"{CONFIG_FILE}: {_NAME}.truncate false is not supported")
    kept = {
        key: value for key, value in settings.items() if key != "truncate" and value is not None
    }
    return {
        **kept,
        # Not read by MLX, but needed to complete the settings again.
        "attention_factor": attention_factor,
        "beta_fast": settings.get("beta_fast") or 32,
        "beta_slow": settings.get("beta_slow") or 1,
        "mscale": mscale,
        "mscale_all_dim": 0,
    }


def _check_numbers(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        is_text = name in ("rope_type", "type", "truncate")
        if not is_text and value is not None:
            low = -1e12 if name in ("mscale", "mscale_all_dim") else None
            check_setting(CONFIG_FILE, f"{_NAME}.{name}", value, float, low=low)


def complete_rope(
    settings: Mapping[str, Any], max_position_embeddings: int | None
) -> dict[str, Any] | None:
    """The ``rope_scaling`` that MLX needs to compute what transformers computes.

    Args:
        settings: ``rope_parameters``, or ``rope_scaling`` of transformers before version 5.
        max_position_embeddings: that of the text_config; None if it has none.

    Returns:
        Complete settings; None for embeddings that are not scaled. Completing them again
        changes nothing.

    Raises:
        ValueError: naming the setting that is missing, of a wrong type or not supported.
    """
    kind = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(kind, str) or kind not in _SETTINGS:
        raise ValueError(
            f"{CONFIG_FILE}: {_NAME}.rope_type {str(kind)[:50]!r} is not supported; supported are "
            f"{', '.join(_SETTINGS)}"
        )
    known = _SETTINGS[kind]
    unknown = [name for name in settings if name not in known and name not in _COMMON]
    if unknown:
        raise ValueError(
            f"{CONFIG_FILE}: {_NAME}.{unknown[0][:50]} is not supported for rope_type {kind}"
        )
    missing = [name for name, needed in known.items() if needed and settings.get(name) is None]
    if missing:
        raise ValueError(f"{CONFIG_FILE}: {_NAME} of rope_type {kind} lacks {missing[0]}")
    _check_numbers(settings)
    if settings.get("partial_rotary_factor") not in (None, 1):
        raise ValueError(f"{CONFIG_FILE}: {_NAME}.partial_rotary_factor is not supported")
    if kind == "default":
        return None
    # mlx-vlm and mlx-lm prefer the older name `type`, transformers prefers `rope_type`.
    completed = {name: settings[name] for name in settings if name != "type"}
    completed["rope_type"] = kind
    original = "original_max_position_embeddings"
    if original in known and completed.get(original) is None:
        if max_position_embeddings is None:
            raise ValueError(
                f"{CONFIG_FILE}: {_NAME} of rope_type {kind} needs {original}, or "
                "text_config.max_position_embeddings"
            )
        completed[original] = max_position_embeddings
    return _complete_yarn(completed) if kind == "yarn" else completed
