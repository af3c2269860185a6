"""Bytes to normalised pixels, as PyTorch computes them: ``(x / 255 - mean) / std`` in float32."""

from collections.abc import Sequence

import numpy as np


def normalize(
    channels: np.ndarray, mean: Sequence[float], std: Sequence[float], out: np.ndarray
) -> None:
    """Write the pixels of one tower into ``out``.

    Args:
        channels: uint8 ``[3, ...]``.
        mean, std: of each channel, for pixels in [0, 1].
        out: float32 of the shape of ``channels``.
    """
    shape = (3,) + (1,) * (channels.ndim - 1)
    # In place: new memory costs more than the arithmetic.
    np.divide(channels, 255, out=out, dtype=np.float32)
    np.subtract(out, np.float32(mean).reshape(shape), out=out)
    np.divide(out, np.float32(std).reshape(shape), out=out)


def normalized_bytes(
    image_mean: Sequence[Sequence[float]], image_std: Sequence[Sequence[float]]
) -> np.ndarray:
    """The normalised value of each byte, float32 ``[3 * towers, 256]``."""
    channels = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 256))
    values = np.empty((len(image_mean), *channels.shape), np.float32)
    for tower, mean, std in zip(values, image_mean, image_std):
        normalize(channels, mean, std, tower)
    return values.reshape(-1, 256)
