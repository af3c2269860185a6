"""Opens pictures in the same way as the published harness."""

from pathlib import Path

from mlx_vlm.models.moxin.picture import bounded, read_picture
from PIL import Image

from mlx_vlm_moxin.evals.example import Picture

_MAX_REASON = 200


def _as_stored(path: Path) -> Image.Image:
    """A file's stored pixels in RGB, ignoring the orientation in its metadata.

    The harness ignores the orientation, and boxes are relative to the stored pixels.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    # Pillow's decoders raise almost any exception for damaged files.
    except Exception as error:
        reason = bounded(error, _MAX_REASON) or type(error).__name__
        raise ValueError(f"Cannot read {path} as a picture: {reason}") from error
    # The processor would apply the orientation.
    image.info = {}
    return image


def open_picture(picture: Picture) -> Image.Image:
    """Open a picture in RGB.

    Raises:
        ValueError: saying what cannot be used as a picture, and why.
    """
    if callable(picture):
        picture = picture()
    return _as_stored(picture) if isinstance(picture, Path) else read_picture(picture)
