"""Sizes that a Prismatic config leaves out, read from the checkpoint's tensor headers."""

import json
import math
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .config import (
    TIMM_TOWERS,
    ModelConfig,
    ProjectorConfig,
    TowerConfig,
    VisionConfig,
)
from .weights import moxin_name

Shapes = dict[str, tuple[int, ...]]
INDEX_FILE = "model.safetensors.index.json"


def weight_files(model_path: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory, every one of them present.

    Raises:
        FileNotFoundError: if the index names a file that is not there.
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
        FileNotFoundError: see :func:`weight_files`.
        ValueError: naming a file that is cut short or otherwise damaged.
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


def _tower(shapes: Shapes, prefix: str, preset: TowerConfig, converted: bool) -> TowerConfig:
    """``preset`` with the sizes that the tensors under ``prefix`` have."""

    def shape(name: str) -> tuple[int, ...]:
        if prefix + name not in shapes:
            raise ValueError(f"This checkpoint has no tensor {prefix + name}")
        return shapes[prefix + name]

    start = len(prefix + "blocks.")
    blocks = {int(n[start:].split(".")[0]) for n in shapes if n.startswith(prefix + "blocks.")}
    # Sources hold the whole tower, conversions one block less: the one that is not used.
    # So does an export of the real tower that already left its last block out.
    depth = len(blocks) + int(converted)
    if depth == preset.num_hidden_layers - 1:
        depth = preset.num_hidden_layers
    return replace(
        preset,
        hidden_size=shape("pos_embed")[-1],
        num_hidden_layers=depth,
        intermediate_size=shape("blocks.0.mlp.fc1.weight")[0],
        num_register_tokens=shapes.get(prefix + "reg_token", (1, 0))[1],
        class_token=prefix + "cls_token" in shapes,
        layer_scale=prefix + "blocks.0.ls1.gamma" in shapes,
    )


def read_sizes(config: ModelConfig) -> None:
    """Give ``config`` the vision and projector sizes that its checkpoint has, in place.

    Only a Prismatic config (it has ``timm_model_ids``) is changed: presets give the
    towers' kind, the tensors at ``config.model_path`` their sizes. Files are checked in
    any case, since a tensor of a damaged file fails only when it is computed.

    Raises:
        FileNotFoundError, ValueError: see :func:`tensor_shapes`.
    """
    if config.model_path is None:
        return
    source_shapes = tensor_shapes(Path(config.model_path))
    if config.timm_model_ids is not None:
        set_sizes(config, source_shapes)


def set_sizes(config: ModelConfig, source_shapes: Shapes) -> None:
    """Give ``config``, which has ``timm_model_ids``, the sizes of these tensors, in place.

    Raises:
        ValueError: naming a tensor that is missing.
    """
    shapes = {moxin_name(name): shape for name, shape in source_shapes.items()}
    converted = "vision_tower.dino.pos_embed" in source_shapes
    dino, siglip = (
        _tower(shapes, f"vision_tower.{name}.", TIMM_TOWERS[timm_id], converted)
        for name, timm_id in zip(("dino", "siglip"), config.timm_model_ids)
    )
    # OIHW in sources, OHWI in conversions: the patch size is the third number of both.
    patch_size = shapes["vision_tower.dino.patch_embed.proj.weight"][2]
    num_patches = shapes["vision_tower.dino.pos_embed"][1]
    fc1 = shapes.get("multi_modal_projector.fc1.weight")
    fc2 = shapes.get("multi_modal_projector.fc2.weight")
    if fc1 is None or fc2 is None:
        raise ValueError("This checkpoint has no fused projector (projector.fc1, fc2, fc3)")
    config.vision_config = VisionConfig(
        image_size=math.isqrt(num_patches) * patch_size,
        patch_size=patch_size,
        dino=dino,
        siglip=siglip,
    )
    config.projector_config = ProjectorConfig(
        input_size=fc1[1], intermediate_size=fc1[0], output_size=fc2[0]
    )
