"""mlx-vlm's per-model tables: the entries that an in-tree model would have there."""

import sys

from mlx_vlm import prompt_utils

MODEL_TYPES = ("moxin", "prismatic")

# Snapshots of MODEL_CONFIG's keys, taken when the module is imported.
_SNAPSHOTS = ("mlx_vlm.trainer.datasets.next_token", "mlx_vlm.trainer.datasets.preference")


def register() -> None:
    """Enter both model types: plain-text messages, one image per prompt.

    ``TEXT_ONLY`` is the format of models whose processor places the picture itself:
    messages reach the chat template as text, without an image marker.
    """
    for model_type in MODEL_TYPES:
        prompt_utils.MODEL_CONFIG.setdefault(model_type, prompt_utils.MessageFormat.TEXT_ONLY)
        prompt_utils.SINGLE_IMAGE_ONLY_MODELS.add(model_type)
    for name in _SNAPSHOTS:
        if name in sys.modules:
            sys.modules[name].NATIVE_PREPROCESS_MODELS.update(MODEL_TYPES)
