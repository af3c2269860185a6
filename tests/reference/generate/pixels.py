"""Pictures to pixels, by torchvision's and timm's own transforms on PIL images.

Follows ``PrismaticImageProcessor.apply_transform`` for HF-converted checkpoints and the
transforms of Prismatic's DINO-SigLIP backbone for native ones.
"""

from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize
from torchvision.transforms import functional as TVF  # noqa: N812

from .layouts import PROCESSORS, read_json

RESIZE_STRATEGIES = ("resize-naive", "letterbox", "resize-crop")


def processor_config(directory: Path, strategy: str) -> dict[str, Any]:
    """The HF image processor's configuration with one of the resize strategies."""
    configs = [read_json(directory / name) for name in PROCESSORS]
    return {config["image_resize_strategy"]: config for config in configs}[strategy]


def letterbox(image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    """Pad both ends of the short side by ``int(difference / 2)``."""
    side = max(image.size)
    x, y = int((side - image.width) / 2), int((side - image.height) / 2)
    return TVF.pad(image, (x, y, x, y), fill=fill, padding_mode="constant")


def hf_pixels(image: Image.Image, config: dict[str, Any]) -> torch.Tensor:
    """``[6, S, S]`` float32, as the HF image processor makes them."""
    image = image.convert("RGB")
    if config["tvf_do_letterbox"]:
        image = letterbox(image, tuple(config["tvf_letterbox_fill"]))
    towers = []
    for resize, crop, normalize in zip(
        config["tvf_resize_params"], config["tvf_crop_params"], config["tvf_normalize_params"]
    ):
        square = TVF.center_crop(TVF.resize(image, **resize), **crop)
        towers.append(TVF.normalize(TVF.to_tensor(square), **normalize))
    return torch.vstack(towers)


def hf_pixels_vertical_first(image: Image.Image, config: dict[str, Any]) -> torch.Tensor:
    """As ``hf_pixels`` without letterboxing, for a resize that runs the vertical pass first."""
    image = image.convert("RGB")
    size = config["tvf_resize_params"][0]["size"]
    height = size[0] if isinstance(size, list) else TVF.resize(image, size).height
    width = size[1] if isinstance(size, list) else TVF.resize(image, size).width
    image = image.resize((image.width, height), Image.Resampling.BICUBIC)
    exact = {"size": [height, width], "interpolation": Image.Resampling.BICUBIC.value}
    resize = [{**params, **exact} for params in config["tvf_resize_params"]]
    return hf_pixels(image, {**config, "tvf_resize_params": resize})


def native_pixels(
    image: Image.Image, strategy: str, towers: list[torch.nn.Module], image_size: int
) -> torch.Tensor:
    """``[3 * towers, S, S]`` float32, as the native pipeline makes them."""
    pixels = []
    for tower in towers:
        data = timm.data.resolve_model_data_config(tower)
        data["input_size"] = (3, image_size, image_size)
        resize, _, *rest = timm.data.create_transform(**data, is_training=False).transforms
        square = image.convert("RGB")
        size: int | tuple[int, int] = image_size
        if strategy == "resize-naive":
            size = (image_size, image_size)
        elif strategy == "letterbox":
            square = letterbox(square, tuple(int(channel * 255) for channel in data["mean"]))
        steps = [Resize(size, interpolation=resize.interpolation), CenterCrop(image_size), *rest]
        pixels.append(Compose(steps)(square))
    return torch.cat(pixels)
