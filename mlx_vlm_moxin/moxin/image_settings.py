"""The entries of ``preprocessor_config.json``, ours and those of HF-converted checkpoints."""

from dataclasses import dataclass, field

from .vision_config import MAX_IMAGE_SIZE

CONFIG_FILE = "preprocessor_config.json"
RESIZE_STRATEGIES = ("resize-naive", "letterbox", "resize-crop")


@dataclass
class ImageSettings:
    """The settings in ``preprocessor_config.json``.

    Attributes:
        image_size: side of the square, in pixels.
        resize_strategy: one of ``RESIZE_STRATEGIES``.
        image_mean, image_std: RGB constants per tower, for pixels in [0, 1].
        letterbox_fill: RGB bytes per tower.
    """

    image_size: int = field(default=224, metadata={"high": MAX_IMAGE_SIZE})
    resize_strategy: str = field(default="resize-naive", metadata={"choices": RESIZE_STRATEGIES})
    image_mean: list[list[float]] = field(default=None, metadata={"low": 0, "high": 1})
    image_std: list[list[float]] = field(default=None, metadata={"low": 1e-6, "high": 100})
    letterbox_fill: list[list[int]] = field(default=None, metadata={"low": 0, "high": 255})


@dataclass
class SourceImageSettings:
    """The entries of an HF-converted checkpoint's ``preprocessor_config.json`` that are read."""

    input_sizes: list[list[int]]
    interpolations: list[str]
    image_resize_strategy: str
    tvf_normalize_params: list[dict]
    tvf_letterbox_fill: list[int] | None = field(default=None, metadata={"low": 0, "high": 255})
    tvf_resize_params: list[dict] | None = None
