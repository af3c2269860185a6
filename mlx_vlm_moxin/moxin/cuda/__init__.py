"""Accelerated forward passes on NVIDIA GPUs, by kernels of our own.

The model in the folder above works without this folder. :func:`attach` connects the two:
``LanguageModel.engine_logits`` becomes :func:`decoder.logits` and ``VisionModel.engine_blocks``
becomes :func:`towers.blocks`, for all instances. Where a pass is not supported (another device,
dtype, format or cache; adapters; training) these return None, and the modules compute it.

``MLX_VLM_MOXIN_KERNELS=0`` in the environment switches the kernels off.
"""

from ..language import LanguageModel
from ..vision import VisionModel
from . import decoder, towers
from .device import enabled

__all__ = ["attach", "enabled"]


def attach() -> None:
    """Make all language and vision models try the kernels first."""
    LanguageModel.engine_logits = decoder.logits
    VisionModel.engine_blocks = towers.blocks
