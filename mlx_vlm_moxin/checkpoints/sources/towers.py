"""Vision towers published by timm, for native checkpoints that contain none."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx_vlm.models.moxin.towers import TIMM_MODELS
from PIL import Image

from mlx_vlm_moxin.checkpoints.pt_file import read_pt
from mlx_vlm_moxin.checkpoints.sources.base import Tensors
from mlx_vlm_moxin.checkpoints.sources.files import fetch_first, local_path
from mlx_vlm_moxin.checkpoints.tensors import LazyTensor, read_safetensors


@dataclass(frozen=True)
class TowerFile:
    """Where timm 0.9.16 gets the weights of a tower.

    Attributes:
        repository: the Hub repository.
        is_resampled: whether its position embedding is for another picture size than the
            Prismatic family's, and is resampled when it is loaded.
    """

    repository: str
    is_resampled: bool = False


TOWER_FILES = {
    "vit_large_patch14_reg4_dinov2.lvd142m": TowerFile(
        "timm/vit_large_patch14_reg4_dinov2.lvd142m", is_resampled=True
    ),
    "vit_so400m_patch14_siglip_224": TowerFile("timm/ViT-SO400M-14-SigLIP"),
    "vit_so400m_patch14_siglip_384": TowerFile("timm/ViT-SO400M-14-SigLIP-384"),
    "vit_large_patch14_clip_224.openai": TowerFile("timm/vit_large_patch14_clip_224.openai"),
    "vit_large_patch14_clip_336.openai": TowerFile("timm/vit_large_patch14_clip_336.openai"),
    "vit_large_patch16_224.augreg_in21k_ft_in1k": TowerFile(
        "timm/vit_large_patch16_224.augreg_in21k_ft_in1k"
    ),
}
# The usual names of the towers.
TOWER_TITLES = {"dino": "DINOv2", "siglip": "SigLIP", "clip": "CLIP", "in1k": "ViT (ImageNet)"}
# File names of timm and open_clip; a repository may have the same weights in several files.
_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
# open_clip's prefix of a tower implemented by timm.
_OPEN_CLIP_TRUNK = "visual.trunk."
# A tower implemented by open_clip: its prefix, and its names -> timm's, longer ones first.
_OPEN_CLIP = "visual."
_OPEN_CLIP_NAMES = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.": "patch_embed.proj.",
    "ln_pre.": "norm_pre.",
    "ln_post.": "norm.",
    "transformer.resblocks.": "blocks.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".attn.in_proj_": ".attn.qkv.",
    ".attn.out_proj.": ".attn.proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
# Output heads: the classifier in timm, the projection to the text space in open_clip.
_HEADS = ("head.weight", "head.bias", "proj")


def _from_open_clip(tensors: Tensors) -> Tensors:
    """The tensors of a tower implemented by open_clip, under timm's names."""
    renamed: Tensors = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_OPEN_CLIP)
        for theirs, timms in _OPEN_CLIP_NAMES.items():
            name = name.replace(theirs, timms)
        # In timm both have three axes.
        if name == "cls_token":
            tensor = tensor.reshape(1, 1, *tensor.shape)
        elif name == "pos_embed":
            tensor = tensor.reshape(1, *tensor.shape)
        renamed[name] = tensor
    return renamed


def read_tower(name: str) -> Tensors:
    """The tensors of a tower from timm or open_clip, under timm's names and without output head.

    Args:
        name: a file, a directory or a Hub repository.

    Raises:
        FileNotFoundError, OSError, ValueError: if ``name`` is not a tower.
    """
    path = local_path(name)
    if path.is_dir() or not path.exists():
        path = fetch_first(name, _FILES)
    tensors = read_safetensors(path) if path.suffix == ".safetensors" else read_pt(path)
    if not isinstance(tensors, dict):
        tensors = {}
    trunk = _with_prefix(tensors, _OPEN_CLIP_TRUNK)
    if trunk:
        tensors = {key.removeprefix(_OPEN_CLIP_TRUNK): value for key, value in trunk.items()}
    elif _OPEN_CLIP + "class_embedding" in tensors:
        tensors = _from_open_clip(_with_prefix(tensors, _OPEN_CLIP))
    if "pos_embed" not in tensors:
        raise ValueError(f"{path} does not contain a timm vision transformer (it has no pos_embed)")
    return {key: value for key, value in tensors.items() if key not in _HEADS}


def _with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    return {key: value for key, value in tensors.items() if str(key).startswith(prefix)}


def read_towers(timm_ids: list[str], given: Mapping[str, str | None]) -> Tensors:
    """The tensors of one or two towers, under our names but in timm's layout.

    Args:
        timm_ids: timm's ids of the towers.
        given: tower's name -> file, directory or Hub repository; None for timm's repository.

    Raises:
        FileNotFoundError, OSError, ValueError: naming what is missing or wrong.
    """
    models = [TIMM_MODELS[timm_id] for timm_id in timm_ids]
    files = [TOWER_FILES[timm_id] for timm_id in timm_ids]
    towers = [
        read_tower(given.get(model.name) or file.repository) for model, file in zip(models, files)
    ]
    num_patches = (models[-1].image_size // models[-1].patch_size) ** 2
    for model, file, tower in zip(models, files, towers):
        if not file.is_resampled:
            # The last tower determines the size; narrow ones, in tests, may be for other picture
            # sizes.
            num_patches = tower["pos_embed"].shape[1] - int(model.tower_config().class_position)
    for file, tower in zip(files, towers):
        if file.is_resampled:
            tower["pos_embed"] = resample(tower["pos_embed"], num_patches)
    return {
        f"vision_tower.{model.name}.{key}": tensor
        for model, tower in zip(models, towers)
        for key, tensor in tower.items()
    }


def resample_pos_embed(pos_embed: np.ndarray, grid: int) -> np.ndarray:
    """Resample position embeddings to another grid, as timm does when it loads a tower.

    timm (``resample_abs_pos_embed`` in ``timm/layers/pos_embed.py``) calls PyTorch's
    ``interpolate`` in float32 with ``mode="bicubic"`` and ``antialias=True``, which uses the
    same filter as Pillow's bicubic resize.

    Args:
        pos_embed: ``[1, old * old, D]`` float32, patches only (timm's ``no_embed_class``).

    Returns:
        ``[1, grid * grid, D]`` float32; ``pos_embed`` itself if the grid is the same.

    Raises:
        ValueError: if the embeddings do not form a square.
    """
    _, count, width = pos_embed.shape
    old = math.isqrt(count)
    if old * old != count:
        raise ValueError(f"Position embeddings for {count} patches do not form a square grid")
    if old == grid:
        return pos_embed
    channels = np.ascontiguousarray(pos_embed.reshape(old, old, width).transpose(2, 0, 1))
    resized = [
        Image.fromarray(channel).resize((grid, grid), Image.Resampling.BICUBIC)
        for channel in channels
    ]
    return np.stack(resized, axis=-1).reshape(1, grid * grid, width)


def resample(pos_embed: LazyTensor, num_patches: int) -> LazyTensor:
    """``pos_embed`` ``[1, N, D]`` resampled to ``num_patches`` patches when read; dtype kept.

    Raises:
        ValueError: if ``pos_embed`` has another shape.
    """
    if len(pos_embed.shape) != 3:
        raise ValueError(f"DINO's pos_embed has shape {pos_embed.shape}, expected [1, N, D]")
    if pos_embed.shape[1] == num_patches:
        return pos_embed
    grid = int(num_patches**0.5)

    def load() -> mx.array:
        values = np.array(pos_embed.load().astype(mx.float32))
        return mx.array(resample_pos_embed(values, grid)).astype(pos_embed.dtype)

    return LazyTensor((1, grid * grid, pos_embed.shape[2]), pos_embed.dtype, load)
