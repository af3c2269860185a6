"""Settings of a quantised layer: ``group_size``, ``bits`` and ``mode``, and which exist.

MLX packs a layer's ``weight`` into ``weight``, ``scales`` and, in mode ``affine``, ``biases``.
config.json's ``quantization`` has the settings of most layers, and under the path of each
layer that differs its settings.
"""

from collections import Counter
from typing import Any

import mlx.nn as nn
from mlx_vlm.quant_utils import QUANTIZATION_MODE_DEFAULTS

PACKED_PARTS = ("weight", "scales", "biases")
# What mx.quantize supports in mode "affine"; each other mode has one group size and width.
AFFINE_GROUP_SIZES = (32, 64, 128)
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
MODES = tuple(QUANTIZATION_MODE_DEFAULTS)

LayerSettings = dict[str, Any]
_NAMES = ("group_size", "bits", "mode")


def supported(mode: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Group sizes and numbers of bits that MLX supports in one of :data:`MODES`."""
    if mode == "affine":
        return AFFINE_GROUP_SIZES, AFFINE_BITS
    group_size, bits = QUANTIZATION_MODE_DEFAULTS[mode]
    return (group_size,), (bits,)


def split_name(name: str) -> tuple[str, str]:
    """Path of a tensor's layer, and which part of the layer the tensor is."""
    path, _, part = name.rpartition(".")
    return path, part


def layer_settings(quantization: dict[str, Any], path: str) -> LayerSettings:
    """Settings of the quantised layer at ``path``.

    Args:
        quantization: config.json's.

    Raises:
        ValueError: if they are not complete, or MLX does not support them.
    """
    override = quantization.get(path)
    settings = override if isinstance(override, dict) else quantization
    group_size, bits = settings.get("group_size"), settings.get("bits")
    mode = settings.get("mode", "affine")
    group_sizes, widths = supported(mode) if mode in MODES else ((), ())
    if group_size not in group_sizes or bits not in widths:
        raise ValueError(
            f"config.json: `quantization` of {path} does not exist in MLX: group_size "
            f"{group_size!r}, bits {bits!r}, mode {mode!r}"
        )
    return {"group_size": group_size, "bits": bits, "mode": mode}


def quantized_layers(model: nn.Module) -> dict[str, LayerSettings]:
    """Settings of the quantised layers of ``model``, by path."""
    return {
        path: {name: getattr(module, name) for name in _NAMES}
        for path, module in model.named_modules()
        if hasattr(module, "bits")
    }


def quantization_of(model: nn.Module) -> dict[str, Any] | None:
    """config.json's ``quantization`` of a model; None if no layer is quantised.

    The commonest settings come first, then those of each layer that differs, by path.
    """
    layers = quantized_layers(model)
    if not layers:
        return None
    counts = Counter(tuple(settings.values()) for settings in layers.values())
    commonest = dict(zip(_NAMES, counts.most_common(1)[0][0]))
    others = {path: settings for path, settings in layers.items() if settings != commonest}
    return {**commonest, **others}
