"""Sizes missing from a config, read from the headers of the checkpoint's tensor files."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .towers import TimmModel, TowerConfig
from .vision_config import PROJECTOR_LAYERS, ProjectorConfig, VisionConfig

Shapes = dict[str, tuple[int, ...]]
INDEX_FILE = "model.safetensors.index.json"


def weight_files(model_path: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory, after checking that all exist.

    Raises:
        FileNotFoundError: if the index names a missing file.
    """
    index = model_path / INDEX_FILE
    if not index.exists():
        return sorted(model_path.glob("*.safetensors"))
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    missing = [name for name in names if not (model_path / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{index} names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            "not there; download the checkpoint again"
        )
    return [model_path / name for name in names]


def tensor_shapes(model_path: Path) -> Shapes:
    """Shape of every tensor under its name in the files; no tensor data is read.

    Raises:
        FileNotFoundError: see ``weight_files``.
        ValueError: naming a file that is truncated or otherwise damaged.
    """
    shapes = {}
    for file in weight_files(model_path):
        try:
            with safe_open(file, framework="np") as tensors:
                for name in tensors.keys():
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); download it again") from error
    return shapes


def check_layout(names: Iterable[str], model_path: Path) -> None:
    """Refuse tensors in a layout that this model does not support, naming its origin.

    Raises:
        ValueError: for an OminiX export, or the decoder without towers.
    """
    names = set(names)
    if any(".inner." in name for name in names):
        raise ValueError(
            f"{model_path} is an OminiX export, which mlx-vlm cannot load. Convert it: python -m "
            f"mlx_vlm_moxin convert --hf-path {model_path} --mlx-path moxin"
        )
    check_towers(names, model_path)


def check_towers(names: Iterable[str], model_path: Path) -> None:
    """Refuse a decoder without towers.

    Raises:
        ValueError: naming what writes such a checkpoint and what runs it.
    """
    if names and all(name.startswith("language_model.") for name in names):
        raise ValueError(
            f"{model_path} holds the decoder alone, as mlx_lm's fuse and convert write it. Run it "
            "with mlx_lm; for pictures, fuse or convert the whole checkpoint with mlx_vlm_moxin"
        )


def _tower_sizes(shapes: Shapes, model: TimmModel, is_converted: bool) -> TowerConfig:
    """The configuration of a tower with the sizes of its tensors."""
    prefix = f"vision_tower.{model.name}."
    start = len(prefix + "blocks.")
    blocks = {int(n[start:].split(".")[0]) for n in shapes if n.startswith(prefix + "blocks.")}
    # Sources contain the whole tower, conversions one block less, the unused one.
    # So does an export of the real tower without its last block.
    depth = len(blocks) + int(is_converted)
    published = model.tower_config().num_hidden_layers
    return model.tower_config(
        hidden_size=_shape(shapes, prefix + "pos_embed")[-1],
        num_hidden_layers=published if depth == published - 1 else depth,
        intermediate_size=_shape(shapes, prefix + "blocks.0.mlp.fc1.weight")[0],
        num_register_tokens=shapes.get(prefix + "reg_token", (1, 0))[1],
        class_token=prefix + "cls_token" in shapes,
        layer_scale=prefix + "blocks.0.ls1.gamma" in shapes,
        pre_norm=prefix + "norm_pre.weight" in shapes,
        patch_bias=prefix + "patch_embed.proj.bias" in shapes,
    )


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"This checkpoint has no tensor {name}")
    return shapes[name]


def vision_sizes(
    shapes: Shapes, models: Sequence[TimmModel], image_size: int | None, is_converted: bool
) -> VisionConfig:
    """The configuration of the towers in a checkpoint.

    Args:
        shapes: of every tensor, by our name of it.
        models: the towers' kinds, in the order of their features.
        image_size: side of the pictures in pixels; None for the published one if it gives the last
            tower's number of patches, else the smallest that does.
        is_converted: whether the unused block was already removed.

    Raises:
        ValueError: naming a tensor that is missing or does not fit.
    """
    prefixes = [f"vision_tower.{model.name}." for model in models]
    towers = {model.name: _tower_sizes(shapes, model, is_converted) for model in models}
    # OIHW in sources, OHWI in conversions: the patch size is the third number of both.
    patch_sizes = [_shape(shapes, prefix + "patch_embed.proj.weight")[2] for prefix in prefixes]
    # A tower with other patches is refused because of the shapes of its tensors.
    patch_size = patch_sizes[-1]
    num_positions = shapes[prefixes[-1] + "pos_embed"][1]
    num_patches = num_positions - int(towers[models[-1].name].class_position)
    size = image_size or models[-1].image_size
    if (size // patch_size) ** 2 != num_patches:
        if image_size is not None:
            raise ValueError(
                f"config.json has pictures of {image_size} pixels, but {prefixes[-1]}pos_embed has "
                f"{num_positions} positions"
            )
        size = math.isqrt(num_patches) * patch_size
    return VisionConfig(image_size=size, patch_size=patch_size, **towers)


def projector_sizes(shapes: Shapes, kind: str) -> ProjectorConfig:
    """The configuration of a checkpoint's projector, one of ``PROJECTOR_LAYERS``.

    Raises:
        ValueError: naming a tensor that is missing.
    """
    layers = [f"multi_modal_projector.fc{1 + i}.weight" for i in range(PROJECTOR_LAYERS[kind])]
    missing = [name for name in layers if name not in shapes]
    if missing:
        raise ValueError(f"This checkpoint has no {kind} projector: {', '.join(missing)} missing")
    first, last = shapes[layers[0]], shapes[layers[-1]]
    return ProjectorConfig(
        model_type=kind,
        input_size=first[1],
        intermediate_size=first[0],
        output_size=last[0],
    )
