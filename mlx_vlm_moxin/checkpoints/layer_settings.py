"""Settings of quantised layers: ``group_size``, ``bits`` and ``mode``.

MLX packs a layer's ``weight`` into ``weight``, ``scales`` and, in mode ``affine``, ``biases``.
config.json's ``quantization`` has the settings of most layers; each layer that differs has an
entry with its settings under its path.
"""

from collections import Counter
from typing import Any

import mlx.nn as nn

PACKED_PARTS = ("weight", "scales", "biases")
LayerSettings = dict[str, Any]
_NAMES = ("group_size", "bits", "mode")


def split_name(name: str) -> tuple[str, str]:
    """Split a tensor's name into the path of its layer and the part of the layer."""
    path, _, part = name.rpartition(".")
    return path, part


def quantized_layers(model: nn.Module) -> dict[str, LayerSettings]:
    """Settings of the quantised layers of ``model``, by path."""
    return {
        path: {name: getattr(module, name) for name in _NAMES}
        for path, module in model.named_modules()
        if hasattr(module, "bits")
    }


def quantization_of(model: nn.Module) -> dict[str, Any] | None:
    """config.json's ``quantization`` of a model; None if no layer is quantised.

    The most common settings come first, then those of each layer that differs, by path.
    """
    layers = quantized_layers(model)
    if not layers:
        return None
    counts = Counter(tuple(settings.values()) for settings in layers.values())
    commonest = dict(zip(_NAMES, counts.most_common(1)[0][0]))
    others = {path: settings for path, settings in layers.items() if settings != commonest}
    return {**commonest, **others}
