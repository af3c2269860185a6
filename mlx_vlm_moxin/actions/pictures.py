"""Camera pictures, prepared as in the evaluations of OpenVLA and OpenVLA-OFT.

Both use TensorFlow; Pillow and NumPy give the same bytes here. Reference:
``experiments/robot/openvla_utils.py`` of openvla/openvla and moojink/openvla-oft, and
TensorFlow's kernels ``crop_and_resize_op`` and ``scale_and_translate_op``.
"""

import functools

import numpy as np
from mlx_vlm.models.moxin.picture_memory import BYTES_PER_PIXEL, pixels_of
from PIL import Image

from mlx_vlm_moxin.actions.jpeg import round_trip

# Side of the pictures that OpenVLA was trained on, in pixels.
POLICY_SIZE = 224
# Area that random cropping kept in training (`image_aug`), so the evaluation crops to it.
CROP_AREA = 0.9
LANCZOS_RADIUS = 3


def center_crop(image: Image.Image, area: float = CROP_AREA) -> Image.Image:
    """The centre of ``image``, resized to ``POLICY_SIZE`` (``tf.image.crop_and_resize``).

    Args:
        image: in RGB, of any size.
        area: share of the picture's area that is kept.
    """
    pixels = pixels_of(image).reshape(image.height, image.width)
    low, high, weights = _linear_samples(image.width, area)
    # Only the pixels that are read become floats.
    left, right = (_floats(np.take(pixels, columns, 1)) for columns in (low, high))
    rows = _between(left, right, np.repeat(weights, BYTES_PER_PIXEL))
    low, high, weights = _linear_samples(image.height, area)
    scaled = _between(rows[low], rows[high], weights[:, None])
    # tf.image.convert_image_dtype: 256 equal steps, cut off.
    np.clip(scaled, 0, 1, out=scaled)
    scaled *= np.float32(255.5)
    square = scaled.astype(np.uint8).reshape(POLICY_SIZE, POLICY_SIZE, BYTES_PER_PIXEL)
    return Image.fromarray(np.ascontiguousarray(square[..., :3]))


@functools.lru_cache(16)
def _linear_samples(length: int, area: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``POLICY_SIZE`` samples of ``length`` pixels.

    In float32 throughout, as in the reference: the positions decide the last bit.

    Returns:
        The pixels before and after each, and the weight of the latter.
    """
    side = np.sqrt(np.float32(area))
    start = (np.float32(1) - side) / np.float32(2)
    last = np.float32(length - 1)
    step = ((start + side) - start) * last / np.float32(POLICY_SIZE - 1)
    positions = start * last + np.arange(POLICY_SIZE, dtype=np.float32) * step
    low = np.floor(positions)
    # Rounding may put the last position of a whole picture after its last pixel.
    high = np.minimum(np.ceil(positions), last)
    return np.minimum(low, last).astype(int), high.astype(int), positions - low


def _floats(pixels: np.ndarray) -> np.ndarray:
    """Pixels of four bytes, uint32 ``[H, W]``, as shares of 255, float32 ``[H, 4 * W]``."""
    return pixels.view(np.uint8) * np.float32(1 / 255)


def _between(left: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``left + (right - left) * weights``, in the memory of ``right``."""
    right -= left
    right *= weights
    right += left
    return right


def resize_for_policy(image: Image.Image, size: int = POLICY_SIZE) -> Image.Image:
    """``image`` prepared like the training data: JPEG compression, then resizing with Lanczos3.

    Args:
        image: in RGB, of any size.
        size: side of the result in pixels; proportions are not kept.
    """
    pixels = round_trip(np.asarray(image)).astype(np.float32)
    for axis in (0, 1):
        pixels = _resample_lanczos(pixels, axis, size)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _resample_lanczos(pixels: np.ndarray, axis: int, size: int) -> np.ndarray:
    """``size`` samples along ``axis``, added up in the reference's order.

    Sums often end at a half, where the last bit decides how they are rounded.
    """
    # Along the first axis a sample is one piece of memory.
    pixels = np.ascontiguousarray(np.moveaxis(pixels, axis, 0))
    result = np.zeros((size, *pixels.shape[1:]), np.float32)
    for tap, weight in zip(*_lanczos_taps(len(pixels), size)):
        values = pixels.take(tap, axis=0)
        values *= weight[:, None, None]
        result += values
    return np.moveaxis(result, 0, axis)


@functools.lru_cache(16)
def _lanczos_taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of ``length`` and their weights for ``size`` samples, ``[taps, size]`` each.

    A shrinking picture widens the kernel (antialiasing). In float32, as in the reference.
    """
    one = np.float32(1)
    scale = one / (np.float32(size) / np.float32(length))
    width = max(scale, one)
    centers = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale
    reach = LANCZOS_RADIUS * width
    first = np.ceil(centers - reach - np.float32(0.5)).astype(int)
    last = np.floor(centers + reach - np.float32(0.5)).astype(int)
    first, last = np.clip(first, 0, length - 1), np.clip(last, 0, length - 1)
    taps = first[:, None] + np.arange((last - first).max() + 1)
    x = (taps.astype(np.float32) + np.float32(0.5) - centers[:, None]) * (one / width)
    weights = np.where(taps <= last[:, None], _lanczos(x), np.float32(0))
    weights *= one / np.add.accumulate(weights, axis=1)[:, -1:]
    return np.minimum(taps, length - 1).T, weights.T


def _lanczos(x: np.ndarray) -> np.ndarray:
    """The Lanczos3 kernel, in float32 like everything here."""
    pi, radius, one = np.float32(np.pi), np.float32(LANCZOS_RADIUS), np.float32(1)
    x = np.abs(x)
    is_center = x <= np.float32(1e-3)
    x = np.where(is_center, one, x)
    values = radius * np.sin(pi * x) * np.sin(pi * x / radius) / (pi * pi * x * x)
    return np.where(is_center, one, np.where(x <= radius, values, np.float32(0)))
