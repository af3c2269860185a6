"""Pictures to pixels, equal to those of Prismatic's PyTorch processor.

Reference: ``PrismaticImageProcessor`` (HF-converted checkpoints) and torchvision's
transforms on PIL images (native ones). ``convert("RGB")``, Pillow's bicubic resize on
bytes, ``/ 255``, then one normalisation per tower, stacked channel by channel.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from PIL import Image

from .image_settings import CONFIG_FILE, ImageSettings, SourceImageSettings
from .normalization import normalize
from .picture import PictureSource, read_picture
from .resize import Colour, letterbox, resize_crop, resize_naive
from .towers import DINO_ID, SIGLIP_ID, TIMM_MODELS, TimmModel
from .validation import check_settings

# timm's constants for Moxin-7B's towers.
_MODELS = [TIMM_MODELS[timm_id] for timm_id in (DINO_ID, SIGLIP_ID)]
IMAGE_MEAN = tuple(model.image_mean for model in _MODELS)
IMAGE_STD = tuple(model.image_std for model in _MODELS)


def _lists(value: Any) -> Any:
    """``value`` with lists instead of tuples, as in JSON."""
    return [*map(_lists, value)] if isinstance(value, (list, tuple)) else value


class ProcessedPictures(NamedTuple):
    """Pictures as input of the model.

    Attributes:
        pixel_values: ``[B, 3 * towers, S, S]`` float32, evaluated.
        squares: the resized pictures, uint8 ``[B, K, 3, S, S]``. K is 1, or the number of fill
            colours if towers see the picture letterboxed in different ones.
    """

    pixel_values: mx.array
    squares: np.ndarray


def _read(images: PictureSource | Sequence[PictureSource]) -> list[Image.Image]:
    images = images if isinstance(images, (list, tuple)) else [images]
    return [read_picture(image) for image in images]


class MoxinImageProcessor:
    """Resizes a picture and normalises it once per tower.

    Args:
        image_size, resize_strategy, image_mean, image_std: see ``ImageSettings``.
        letterbox_fill: RGB bytes per tower; ``int(255 * mean)`` if not given.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 224,
        resize_strategy: str = "resize-naive",
        image_mean: Sequence[Sequence[float]] = IMAGE_MEAN,
        image_std: Sequence[Sequence[float]] = IMAGE_STD,
        letterbox_fill: Sequence[Colour] | None = None,
    ):
        self.image_size = image_size
        self.resize_strategy = resize_strategy
        self.image_mean = _lists(image_mean)
        self.image_std = _lists(image_std)
        check_settings(ImageSettings, vars(self), file=CONFIG_FILE)
        if letterbox_fill is None:
            letterbox_fill = [[int(255 * channel) for channel in mean] for mean in image_mean]
        self.letterbox_fill = _lists(letterbox_fill)
        check_settings(ImageSettings, vars(self), file=CONFIG_FILE)
        shapes = {
            name: [len(colour) for colour in getattr(self, name)]
            for name in ("image_mean", "image_std", "letterbox_fill")
        }
        if any(shape != [3] * len(self.image_mean) for shape in shapes.values()):
            raise ValueError(
                f"{CONFIG_FILE}: image_mean, image_std and letterbox_fill must have three numbers "
                f"for each vision tower, got {shapes}"
            )

    @property
    def fills(self) -> list[tuple[int, ...]]:
        """The colour of each tower's padding; empty for strategies that do not pad."""
        is_padded = self.resize_strategy == "letterbox"
        return [tuple(fill) if is_padded else () for fill in self.letterbox_fill]

    def _square(self, image: Image.Image, fill: Colour) -> np.ndarray:
        """The resized picture, uint8 ``[3, S, S]``."""
        size = self.image_size
        if self.resize_strategy == "resize-naive":
            image = resize_naive(image, size)
        elif self.resize_strategy == "letterbox":
            image = letterbox(image, size, fill)
        else:
            image = resize_crop(image, size)
        # Transposed while they are bytes, which is less memory to move.
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def preprocess(self, images: PictureSource | Sequence[PictureSource]) -> np.ndarray:
        """Pixels of one or more pictures, computed by the CPU.

        Returns:
            ``[B, 3 * towers, S, S]`` float32, the first tower's three channels first.

        Raises:
            PictureError: see ``picture.read_picture``.
        """
        return self._preprocess(_read(images))[0]

    def _preprocess(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """What ``process`` returns, as NumPy arrays."""
        size, different = self.image_size, list(dict.fromkeys(self.fills))
        squares = [[self._square(image, fill) for fill in different] for image in images]
        pixels = np.empty((len(images), len(self.fills), 3, size, size), np.float32)
        for towers, found in zip(pixels, squares):
            constants = zip(towers, self.fills, self.image_mean, self.image_std)
            for tower, fill, mean, std in constants:
                normalize(found[different.index(fill)], mean, std, tower)
        return pixels.reshape(len(images), 3 * len(self.fills), size, size), np.array(squares)

    def process(self, images: PictureSource | Sequence[PictureSource]) -> ProcessedPictures:
        """Pixels of one or more pictures as an MLX array, equal to those of ``preprocess``.

        Raises:
            PictureError: see ``picture.read_picture``.
        """
        pictures = _read(images)
        result = self.engine_process(pictures)
        if result is None:
            pixels, squares = self._preprocess(pictures)
            result = ProcessedPictures(mx.array(pixels), squares)
            # Evaluated here: another thread may read them, and cannot evaluate this thread's graph.
            mx.eval(result.pixel_values)
        return result

    def pixels(
        self,
        images: PictureSource | Sequence[PictureSource],
        until: contextlib.ExitStack | None = None,
    ) -> mx.array:
        """The ``pixel_values`` alone of ``process``; a GPU may still be computing them.

        Args:
            until: before the end of this context, the calling thread evaluates what it computes
                from them. Then a GPU may receive both at once, which takes the host less time.

        Raises:
            PictureError: see ``picture.read_picture``.
        """
        pictures = _read(images)
        result = self.engine_pixels(pictures, until)
        return mx.array(self._preprocess(pictures)[0]) if result is None else result

    def engine_process(self, images: Sequence[Image.Image]) -> ProcessedPictures | None:
        """``process`` of RGB pictures by an accelerator; None if it does not support them.

        There is none in plain MLX. A plug-in may replace this method of the class.
        """
        return None

    def engine_pixels(
        self, images: Sequence[Image.Image], until: contextlib.ExitStack | None
    ) -> mx.array | None:
        """``pixels`` of RGB pictures by an accelerator, as ``engine_process``."""
        return None

    __call__ = preprocess

    @classmethod
    def of_towers(
        cls, models: Sequence[TimmModel], image_size: int, resize_strategy: str
    ) -> "MoxinImageProcessor":
        """An image processor with timm's constants, as for native checkpoints."""
        return cls(
            image_size,
            resize_strategy,
            image_mean=[model.image_mean for model in models],
            image_std=[model.image_std for model in models],
        )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "MoxinImageProcessor":
        """From a preprocessor_config.json, ours or an HF-converted checkpoint's.

        The latter's processor uses the ``tvf_*`` entries: constants rounded to bfloat16, and one
        letterbox colour for all towers.

        Raises:
            ValueError: naming an entry that is missing or not supported.
        """
        if "tvf_normalize_params" not in config:
            check_settings(ImageSettings, config, file=CONFIG_FILE)
            names = ("image_size", "resize_strategy", "image_mean", "image_std", "letterbox_fill")
            return cls(**{name: config[name] for name in names if name in config})
        check_settings(SourceImageSettings, config, file=CONFIG_FILE)
        try:
            sizes = config["input_sizes"]
            normalize = config["tvf_normalize_params"]
            fill = config.get("tvf_letterbox_fill")
            if set(config["interpolations"]) != {"bicubic"} or len(normalize) != len(sizes):
                raise ValueError(
                    f"{CONFIG_FILE}: expected bicubic resizing and one normalisation per tower"
                )
            sides = {side for size in sizes for side in size[1:]}
            if len(sides) != 1 or any(len(size) != 3 for size in sizes):
                raise ValueError(
                    f"{CONFIG_FILE}: input_sizes must be one square, got {str(sizes)[:100]}"
                )
            resized = [params["size"] for params in config.get("tvf_resize_params") or []]
            if any(size not in (sizes[0][1], sizes[0][1:]) for size in resized):
                raise ValueError(
                    f"{CONFIG_FILE}: tvf_resize_params {str(resized)[:100]} are not the size of "
                    "input_sizes; a crop of a larger picture is not supported"
                )
            return cls(
                image_size=sizes[0][1],
                resize_strategy=config["image_resize_strategy"],
                image_mean=[params["mean"] for params in normalize],
                image_std=[params["std"] for params in normalize],
                letterbox_fill=[fill] * len(sizes) if fill else None,
            )
        except KeyError as error:
            raise ValueError(f"{CONFIG_FILE}: {error} missing") from error

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that ``from_dict`` reads."""
        return {"image_processor_type": type(self).__name__, **vars(self)}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write preprocessor_config.json into ``save_directory``."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        (Path(save_directory) / CONFIG_FILE).write_text(text, encoding="utf-8")
