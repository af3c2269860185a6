"""Pictures as arrays: opened, squared and normalised for each of the two towers."""

import mlx.core as mx
import numpy as np
from mlx_vlm.models.moxin.image_processing_moxin import (
    IMAGE_MEAN,
    IMAGE_STD,
    MoxinImageProcessor,
)
from mlx_vlm.models.moxin.picture import PictureSource

_DINO, _SIGLIP = range(2)


def preprocess(image: PictureSource, image_size: int = 224) -> mx.array:
    """One picture in the form that the towers need, before normalisation.

    This is the ``resize-naive`` strategy of Moxin's published checkpoints: RGB, squashed
    to the square with Pillow's bicubic filter. ``processor.image_processor`` of a loaded
    checkpoint has that checkpoint's strategy and constants.

    Args:
        image: a path, a URL, a data URI, bytes, a binary file, a dictionary of a data set, a PIL
            image or an array; see ``mlx_vlm.models.moxin.picture.read_picture``.
        image_size: side of the square, in pixels.

    Returns:
        ``[1, image_size, image_size, 3]`` float32 in [0, 1].

    Raises:
        ValueError: what cannot be used as a picture, and why.
    """
    only_resize = MoxinImageProcessor(image_size, image_mean=[[0, 0, 0]], image_std=[[1, 1, 1]])
    return mx.array(only_resize(image)).transpose(0, 2, 3, 1)


def _check(images: mx.array | np.ndarray) -> mx.array:
    """``images`` as an MLX array, after checking that the functions below accept it.

    Raises:
        ValueError: naming the shape, the dtype or the range that is wrong.
    """
    if not isinstance(images, (mx.array, np.ndarray)):
        raise ValueError(f"images must be an array, got {type(images).__name__}")
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(f"images must have shape [B, H, W, 3], got {list(images.shape)}")
    if images.dtype not in (mx.float32, np.float32):
        dtype = str(images.dtype).removeprefix("mlx.core.")
        raise ValueError(
            f"images must be float32 in [0, 1], got {dtype} (bytes are divided by 255 first)"
        )
    images = mx.array(images)
    if not mx.all((images >= 0) & (images <= 1)).item():
        raise ValueError(
            f"images must lie in [0, 1], got values from {images.min().item():g} to "
            f"{images.max().item():g}"
        )
    return images


def _normalize(images: mx.array | np.ndarray, tower: int) -> mx.array:
    mean, std = mx.array(IMAGE_MEAN[tower]), mx.array(IMAGE_STD[tower])
    return (_check(images) - mean) / std


def normalize_dino(images: mx.array | np.ndarray) -> mx.array:
    """Pixels for DINOv2, by ImageNet's mean and standard deviation (timm's constants).

    Args:
        images: ``[B, H, W, 3]`` float32 in [0, 1], RGB.

    Returns:
        The same shape, float32.

    Raises:
        ValueError: if ``images`` has another shape, dtype or range.
    """
    return _normalize(images, _DINO)


def normalize_siglip(images: mx.array | np.ndarray) -> mx.array:
    """Pixels for SigLIP, by mean 0.5 and standard deviation 0.5 (timm's constants).

    Arguments, result and errors are those of ``normalize_dino``.
    """
    return _normalize(images, _SIGLIP)


def to_pixel_values(images: mx.array | np.ndarray) -> mx.array:
    """Both normalisations of ``images``, as the model expects them.

    Args:
        images: ``[B, H, W, 3]`` float32 in [0, 1], RGB.

    Returns:
        ``[B, 6, H, W]`` float32, DINOv2's channels first.

    Raises:
        ValueError: see ``normalize_dino``.
    """
    channels = [normalize_dino(images), normalize_siglip(images)]
    return mx.concatenate(channels, axis=-1).transpose(0, 3, 1, 2)
