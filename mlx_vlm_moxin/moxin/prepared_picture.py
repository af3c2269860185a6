"""A picture as input of the model: pixels, and the placeholder ids of its visual tokens.

Placeholders are ids above ``<PAD>``, which the tokenizer never generates. All but the last are
derived from the picture's hash, so that mlx-vlm's prefix caches, which compare token ids, never
confuse two pictures; the last one is ``image_token_index``, which marks the end of the picture.
"""

import hashlib
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from PIL import Image

from .image_processing_moxin import MoxinImageProcessor
from .picture import PictureSource
from .picture_memory import have_equal_pixels

# The last picture is remembered up to this many pixels, four bytes each.
MAX_REMEMBERED = 2**22


class PreparedPicture(NamedTuple):
    """A picture as input of the model.

    Attributes:
        pixel_values: ``[1, C, S, S]`` float32.
        placeholders: ids in the place of its visual tokens.
    """

    pixel_values: mx.array
    placeholders: list[int]


PictureInput = PictureSource | PreparedPicture
# Number of placeholders of a picture, and their range of ids: start, end (excluded).
PlaceholderRange = tuple[int, int, int]


def image_placeholders(
    pixels: np.ndarray, count: int, first: int, vocab_size: int, normalisation: str = ""
) -> list[int]:
    """``count`` ids for one picture: a hash, then ``first``.

    Args:
        pixels: of the picture.
        count: number of ids.
        first: the lowest id, which only the last one has.
        vocab_size: where the ids end.
        normalisation: what else the model's input depends on, if ``pixels`` are bytes.
    """
    # SHA-256 hashes the pixels, since processors have instructions for it; SHAKE only extends it.
    code = hashlib.sha256(np.ascontiguousarray(pixels)).digest() + normalisation.encode()
    digest = np.frombuffer(hashlib.shake_256(code).digest(count - 1), np.uint8)
    others = first + 1 + digest.astype(int) % (vocab_size - first - 1)
    return [*others.tolist(), first]


def prepare(
    image: Image.Image, image_processor: MoxinImageProcessor, placeholder_range: PlaceholderRange
) -> PreparedPicture:
    """An RGB picture resized and normalised, evaluated, with its placeholders."""
    pixel_values, squares = image_processor.process(image)
    # The bytes are an eighth of the memory, and the pixels follow from them and these.
    normalisation = repr([image_processor.image_mean, image_processor.image_std])
    placeholders = image_placeholders(squares[0], *placeholder_range, normalisation)
    return PreparedPicture(pixel_values, placeholders)


class LastPicture:
    """Prepares pictures and remembers the last one.

    The next question often comes with the same picture: comparing it with the last one needs a
    tenth of the time of preparing it. Several threads may use an instance at once.
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
        # The other inputs of the result.
        settings = repr([vars(image_processor), *placeholder_range])
        last, last_settings, result = self._last
        if last is None or settings != last_settings or not have_equal_pixels(image, last):
            result = prepare(image, image_processor, placeholder_range)
            # A copy, because the caller may change the picture.
            self._last = image.copy(), settings, result
        return result
