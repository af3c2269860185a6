"""Entries for mlx-vlm's per-model tables, as an in-tree model would have them."""

from mlx_vlm.models.moxin.config import MODEL_TYPES
from mlx_vlm.prompt_utils import MessageFormat


def message_formats(table: dict[str, MessageFormat]) -> dict[str, MessageFormat]:
    """``MODEL_CONFIG`` with plain-text messages for our model types.

    ``TEXT_ONLY`` is the format of models whose processor places the picture itself:
    messages reach the chat template as text, without an image marker.
    """
    for model_type in MODEL_TYPES:
        table.setdefault(model_type, MessageFormat.TEXT_ONLY)
    return table


def model_types(table: set[str]) -> set[str]:
    """A set of model types with ours added."""
    table.update(MODEL_TYPES)
    return table
