"""The weights of Pillow's bicubic resize, as integers.

Pillow computes them in double precision, divides them by their sum, and rounds them to 22
fractional bits (``precompute_coeffs`` and ``normalize_coeffs_8bpc`` in its ``Resample.c``). The
order of the operations here is the same, so the integers are equal.
"""

import functools

import numpy as np

BITS = 22
# Of the bicubic filter, in output pixels.
SUPPORT = 2.0
_A = -0.5


@functools.lru_cache(64)
def resize_table(source: int, size: int, first: int, count: int) -> np.ndarray:
    """A pass's weights for output pixels ``first`` to ``first + count`` (excluded) of ``size``.

    Args:
        source: pixels of the source's rows or columns.
        size: pixels that these are resized to.

    Returns:
        int32 ``[2 + taps, count]``: for each output pixel the first source pixel, the number of
        source pixels, and their weights.
    """
    scale = source / size
    stretch = max(scale, 1.0)
    support = SUPPORT * stretch
    centers = (np.arange(first, first + count) + 0.5) * scale
    starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    ends = np.minimum((centers + support + 0.5).astype(np.int64), source)
    taps = np.arange((ends - starts).max())[:, None]
    weights = _bicubic((taps + starts - centers + 0.5) * (1.0 / stretch))
    weights[taps >= ends - starts] = 0.0
    # Added up one by one, as Pillow does.
    weights /= np.cumsum(weights, axis=0)[-1]
    integers = (weights * (1 << BITS) + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
    return np.concatenate([[starts, ends - starts], integers]).astype(np.int32)


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((_A + 2.0) * x - (_A + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
