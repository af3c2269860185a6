"""A picture from an array of any supported dtype and order of axes."""

from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

_CHANNELS = (1, 2, 3, 4)


def image_from_array(array: Any) -> Image.Image:
    """A PIL image in mode L, LA, RGB or RGBA.

    Args:
        array: ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]`` with 1 to 4 channels: grey, grey and
            alpha, RGB, RGBA. If both orders fit, the last axis is the channels.

    Raises:
        ValueError: for another shape, or from ``to_8_bits``.
    """
    pixels = _as_numpy(array)
    shape = pixels.shape
    if pixels.ndim == 3 and shape[2] not in _CHANNELS and shape[0] in _CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS):
        raise ValueError(
            "an array must have shape [height, width], [height, width, channels] or [channels, "
            f"height, width] with 1 to 4 channels, got {list(shape)}"
        )
    if 0 in shape:
        raise ValueError(f"an array of shape {list(shape)} is empty")
    return Image.fromarray(np.ascontiguousarray(to_8_bits(pixels)))


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` as uint8.

    Of 16 bits the upper 8 are kept, as Pillow does for 16-bit colour; floats in [0, 1] are
    multiplied by 255 and rounded, the inverse of dividing bytes by 255.

    Raises:
        ValueError: for types and values that have no defined black and white.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16 or pixels.dtype == np.dtype(">u2"):
        return (pixels >> 8).astype(np.uint8)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(
            f"an array of {pixels.dtype} has no defined black and white; give uint8, uint16, or "
            "floats in [0, 1]"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"floats must lie in [0, 1], got values from {low:g} to {high:g}")
    return np.rint(pixels * 255).astype(np.uint8)


def _as_numpy(array: Any) -> np.ndarray:
    if isinstance(array, mx.array) and array.dtype == mx.bfloat16:
        array = array.astype(mx.float32)  # NumPy has no bfloat16
    return np.asarray(array)
