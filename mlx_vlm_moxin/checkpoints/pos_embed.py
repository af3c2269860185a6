"""Position embeddings on another grid, as timm resamples them when it loads a tower.

timm: ``resample_abs_pos_embed`` in ``timm/layers/pos_embed.py``, which calls PyTorch's
``interpolate`` in float32 with ``mode="bicubic"`` and ``antialias=True``.
"""

import math

import numpy as np


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5, the kernel of PyTorch's antialiased bicubic mode."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _weights(old: int, new: int) -> np.ndarray:
    """``[new, old]`` weights along one axis (``align_corners=False``)."""
    scale = old / new
    # The kernel grows when the grid shrinks: this is what antialiasing means here.
    stretch = max(scale, 1.0)
    weights = np.zeros((new, old))
    for row in range(new):
        center = scale * (row + 0.5)
        first = max(int(center - 2 * stretch + 0.5), 0)
        last = min(int(center + 2 * stretch + 0.5), old)
        values = _cubic((np.arange(first, last) - center + 0.5) / stretch)
        weights[row, first:last] = values / values.sum()
    return weights


def resample_pos_embed(pos_embed: np.ndarray, grid: int) -> np.ndarray:
    """Position embeddings ``[1, old * old, D]`` on a ``grid`` x ``grid`` raster.

    Args:
        pos_embed: float32, patches only (timm's ``no_embed_class``).

    Returns:
        ``[1, grid * grid, D]`` float32; ``pos_embed`` itself if the grid is the same.

    Raises:
        ValueError: if the embeddings do not form a square.
    """
    _, count, width = pos_embed.shape
    old = math.isqrt(count)
    if old * old != count:
        raise ValueError(f"Position embeddings for {count} patches do not form a square grid")
    if old == grid:
        return pos_embed
    weights = _weights(old, grid)
    raster = pos_embed.reshape(old, old, width).astype(np.float64)
    raster = np.einsum("yi,xj,ijd->yxd", weights, weights, raster, optimize=True)
    return raster.reshape(1, grid * grid, width).astype(np.float32)
