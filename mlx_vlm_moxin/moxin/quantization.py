"""config.json's ``quantization``: the settings of packed layers, and which MLX supports."""

from typing import Any

from ...quant_utils import QUANTIZATION_MODE_DEFAULTS
from .validation import CONFIG_FILE

# Supported by mx.quantize in mode "affine"; each other mode has one group size and width.
AFFINE_GROUP_SIZES = (32, 64, 128)
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
MODES = tuple(QUANTIZATION_MODE_DEFAULTS)


def supported(mode: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Group sizes and numbers of bits that MLX supports in one of ``MODES``."""
    if mode == "affine":
        return AFFINE_GROUP_SIZES, AFFINE_BITS
    group_size, bits = QUANTIZATION_MODE_DEFAULTS[mode]
    return (group_size,), (bits,)


def layer_settings(quantization: dict[str, Any], path: str | None = None) -> dict[str, Any]:
    """``group_size``, ``bits`` and ``mode`` of a quantised layer.

    Args:
        quantization: config.json's: the settings of most layers, and under the path of each
            layer that differs its settings.
        path: of the layer; None for those of most layers.

    Raises:
        ValueError: if they are not complete, or MLX does not support them.
    """
    override = quantization.get(path)
    settings = override if isinstance(override, dict) else quantization
    found = [settings.get("group_size"), settings.get("bits"), settings.get("mode", "affine")]
    group_size, bits, mode = found
    is_known = isinstance(mode, str) and mode in MODES
    group_sizes, widths = supported(mode) if is_known else ((), ())
    is_whole = type(group_size) is int and type(bits) is int
    if not is_whole or group_size not in group_sizes or bits not in widths:
        place = f" of {path[:200]}" if path else ""
        shown = [str(value)[:30] for value in found]
        raise ValueError(
            f"`quantization`{place} does not exist in MLX: group_size {shown[0]}, "
            f"bits {shown[1]}, mode {shown[2]}"
        )
    return {"group_size": group_size, "bits": bits, "mode": mode}


def check_quantization(quantization: Any) -> None:
    """Refuse settings with which MLX would end the process or mlx-vlm raise.

    Raises:
        ValueError: naming the layer and its settings.
    """
    if not isinstance(quantization, dict):
        raise ValueError(
            f"{CONFIG_FILE}: `quantization` is {type(quantization).__name__}; allowed: an object"
        )
    paths = [path for path, value in quantization.items() if isinstance(value, dict)]
    try:
        for path in (None, *paths):
            layer_settings(quantization, path)
    except ValueError as error:
        raise ValueError(f"{CONFIG_FILE}: {error}") from None
