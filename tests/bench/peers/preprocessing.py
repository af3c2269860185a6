"""A 12-megapixel JPEG to pixels; functions that give milliseconds."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image
from support import preprocessor_config

from .clock import milliseconds
from .models import Models
from .rounds import Run

QUALITY = 90


@functools.cache
def jpeg(width: int, height: int) -> bytes:
    """A JPEG of smooth shapes, texture and some noise, about as large as a photograph's."""
    generator = np.random.default_rng(0)
    photo = np.zeros((height, width, 3), np.float32)
    for cells, contrast in ((4, 90), (40, 40), (400, 20)):
        shape = (max(1, cells * height // width), cells, 3)
        noise = generator.integers(0, 256, shape, dtype=np.uint8)
        octave = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        photo += contrast * (np.asarray(octave, np.float32) / 255 - 0.5)
    photo += generator.normal(128, 8, photo.shape).astype(np.float32)
    file = io.BytesIO()
    image = Image.fromarray(photo.clip(0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _source(models: Models, decoded: bool) -> Any:
    """A function that gives the photo: opened from its bytes, or already decoded."""
    data = jpeg(*models.sizes.photo)
    if not decoded:
        return lambda: Image.open(io.BytesIO(data))
    image = Image.open(io.BytesIO(data))
    image.load()
    return lambda: image


def ours(models: Models, decoded: bool) -> Run:
    """This package's image processor."""
    from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor

    size = models.sizes.config.vision_config.image_size
    image_processor = MoxinImageProcessor.from_dict(preprocessor_config(size))
    source = _source(models, decoded)
    return lambda: milliseconds(lambda: image_processor(source()))


def torchvision(models: Models, decoded: bool) -> Run:
    """The reference processor's steps: each tower resizes, converts and normalises."""
    from reference.generate.pixels import hf_pixels

    config = preprocessor_config(models.sizes.config.vision_config.image_size)
    source = _source(models, decoded)
    return lambda: milliseconds(lambda: hf_pixels(source(), config))


def decode(models: Models) -> Run:
    """Pillow's JPEG decoder alone, which both sides need."""
    source = _source(models, decoded=False)
    return lambda: milliseconds(lambda: source().load())
