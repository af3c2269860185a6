"""``AutoProcessor`` for Moxin checkpoints that does not hide errors."""

from collections.abc import Callable
from typing import Any

from mlx_vlm.models.moxin.config import MODEL_TYPES
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from transformers import PretrainedConfig

from mlx_vlm_moxin.checkpoints.native_output import native_errors_dropped

_HUB_OPTIONS = ("revision", "token", "cache_dir")


def _model_type(name_or_path: Any, **kwargs: Any) -> str | None:
    """``model_type`` of a checkpoint's config.json; None if there is none to read."""
    try:
        return PretrainedConfig.get_config_dict(name_or_path, **kwargs)[0].get("model_type")
    except (OSError, ValueError):
        return None


def from_pretrained(original: Callable) -> classmethod:
    """``AutoProcessor.from_pretrained`` that returns ``MoxinProcessor`` for Moxin.

    The model folder registers its processor with ``install_auto_processor_patch``, as every
    model of mlx-vlm does. That function returns a bare tokenizer after any error, and the picture
    is then silently ignored. This one is called before it and raises errors.

    Args:
        original: the bound method, used for all other checkpoints.
    """

    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        hub = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
        if _model_type(pretrained_model_name_or_path, **hub) in MODEL_TYPES:
            with native_errors_dropped():
                return MoxinProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return original.__func__(cls, pretrained_model_name_or_path, **kwargs)

    return classmethod(from_pretrained)
