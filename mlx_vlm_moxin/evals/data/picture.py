"""Pictures as the published harness opens them."""

from pathlib import Path

from mlx_vlm.models.moxin.picture import bounded, read_picture
from PIL import Image

from mlx_vlm_moxin.evals.example import Picture

_MAX_REASON = 200


def _as_stored(path: Path) -> Image.Image:
    """A file's pixels in RGB, not turned as its metadata say.

    The harness ignores an orientation in the metadata, and boxes are relative to the pixels
    as they are stored.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    # Pillow's decoders raise almost any class for damaged files.
    except Exception as error:
        reason = bounded(error, _MAX_REASON) or type(error).__name__
        raise ValueError(f"Cannot read {path} as a picture: {reason}") from error
    # The processor would turn it.
    image.info = {}
    return image


def open_picture(picture: Picture) -> Image.Image:
    """A picture in RGB.

    Raises:
        ValueError: saying what cannot be used as a picture, and why.
    """
    if callable(picture):
        picture = picture()
    return _as_stored(picture) if isinstance(picture, Path) else read_picture(picture)
