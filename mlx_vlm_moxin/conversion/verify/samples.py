"""The pictures and prompts on which two models are compared."""

from dataclasses import dataclass
from pathlib import Path

from mlx_vlm.models.moxin.picture import read_picture
from PIL import Image

# Drawn for this package: shapes and colours, numbers, words, a scene.
BUNDLED_PICTURES = Path(__file__).parent / "pictures"
PROMPTS = (
    "Describe this picture in detail.",
    "Which objects, colours and words do you see?",
)


@dataclass(frozen=True)
class Sample:
    """One question about one picture."""

    picture: Path
    prompt: str


def find_samples(images: Path | None = None) -> list[Sample]:
    """Every picture of a directory (by default the bundled one) with every prompt.

    Each picture is decoded here, so that a damaged one is found before a model is loaded.

    Raises:
        FileNotFoundError: if ``images`` is not a directory.
        ValueError: if it contains no picture, or one that cannot be read.
    """
    directory = BUNDLED_PICTURES if images is None else Path(images)
    if not directory.is_dir():
        raise FileNotFoundError(
            f"No directory {directory}; name one that holds pictures, or leave it out for the "
            "bundled pictures"
        )
    known = Image.registered_extensions()
    pictures = sorted(file for file in directory.iterdir() if file.suffix.lower() in known)
    if not pictures:
        raise ValueError(f"No pictures in {directory}; put PNG, JPEG or WebP files there")
    for picture in pictures:
        try:
            read_picture(picture)
        except (OSError, ValueError) as error:
            raise ValueError(f"{picture} cannot be read as a picture ({error})") from error
    return [Sample(picture, prompt) for picture in pictures for prompt in PROMPTS]
