"""A picture as the model receives it: pixels, and the ids that stand for its visual tokens.

Placeholders are ids of the range above ``<PAD>``, which the tokenizer never yields: all but the
last are drawn from the picture's hash, so that mlx-vlm's prefix caches, which compare token
ids, never take one picture for another; the last one is ``image_token_index``, by which
they know where the picture ends.
"""

import hashlib
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from PIL import Image, ImageChops

from .image_processing_moxin import MoxinImageProcessor
from .picture import PictureSource

# The last picture is remembered up to this many pixels, four bytes each.
MAX_REMEMBERED = 2**22


class PreparedPicture(NamedTuple):
    """A picture as the model receives it.

    Attributes:
        pixel_values: ``[1, C, S, S]`` float32.
        placeholders: the ids that stand for its visual tokens.
    """

    pixel_values: mx.array
    placeholders: list[int]


PictureInput = PictureSource | PreparedPicture
# How many placeholders a picture has, and the ids that they are drawn from: from, to (excluded).
PlaceholderRange = tuple[int, int, int]


def image_placeholders(pixels: np.ndarray, count: int, first: int, vocab_size: int) -> list[int]:
    """``count`` ids for one picture, ``[C, S, S]``: a code of its pixels, then ``first``."""
    # SHA-256 reads the pixels, as processors have instructions for it; SHAKE only extends it.
    code = hashlib.sha256(np.ascontiguousarray(pixels)).digest()
    digest = hashlib.shake_256(code).digest(count - 1)
    return [first + 1 + byte % (vocab_size - first - 1) for byte in digest] + [first]


def prepare(
    image: Image.Image, image_processor: MoxinImageProcessor, placeholder_range: PlaceholderRange
) -> PreparedPicture:
    """An RGB picture resized and normalised, evaluated, with its placeholders."""
    pixels = image_processor(image)
    placeholders = image_placeholders(pixels[0], *placeholder_range)
    pixel_values = mx.array(pixels)
    # Evaluated here: another thread may read them, and cannot evaluate this thread's graph.
    mx.eval(pixel_values)
    return PreparedPicture(pixel_values, placeholders)


def _are_equal(first: Image.Image, second: Image.Image) -> bool:
    """Whether two RGB pictures are the same, in the fastest of Pillow's ways."""
    return first.size == second.size and not ImageChops.subtract_modulo(first, second).getbbox()


class LastPicture:
    """Prepares pictures and remembers the last one.

    The next question is often about the same picture, which comes along again: comparing
    all of it with the last one needs a tenth of the time. Several threads may use it at once.
    """

    def __init__(self):
        self._last: tuple = (None, None, None)

    def prepared(
        self,
        image: Image.Image,
        image_processor: MoxinImageProcessor,
        placeholder_range: PlaceholderRange,
    ) -> PreparedPicture:
        """``prepare``, or its last result if picture and settings are the same."""
        if image.width * image.height > MAX_REMEMBERED:
            return prepare(image, image_processor, placeholder_range)
        # What the result depends on besides.
        settings = repr([vars(image_processor), *placeholder_range])
        last, last_settings, result = self._last
        if last is None or settings != last_settings or not _are_equal(image, last):
            result = prepare(image, image_processor, placeholder_range)
            # A copy: the caller may go on drawing.
            self._last = image.copy(), settings, result
        return result
