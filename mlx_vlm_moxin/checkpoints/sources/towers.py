"""The two vision towers as timm publishes them, for native checkpoints without their own."""

import math

import mlx.core as mx
import numpy as np
from PIL import Image

from mlx_vlm_moxin.checkpoints.pt_file import read_pt
from mlx_vlm_moxin.checkpoints.sources.base import Tensors
from mlx_vlm_moxin.checkpoints.sources.files import fetch_first, local_path
from mlx_vlm_moxin.checkpoints.tensors import LazyTensor, read_safetensors

# What timm 0.9.16 downloads for the two model names.
DINO_REPOSITORY = "timm/vit_large_patch14_reg4_dinov2.lvd142m"
SIGLIP_REPOSITORY = "timm/ViT-SO400M-14-SigLIP"
# timm's and open_clip's file names; a repository has the same weights under several.
_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
_OPEN_CLIP = "visual.trunk."


def read_tower(name: str) -> Tensors:
    """A tower's tensors under timm's own names; open_clip's prefix is taken off.

    Args:
        name: a file, a directory or a Hub repository.

    Raises:
        FileNotFoundError, OSError, ValueError: if there is no tower at ``name``.
    """
    path = local_path(name)
    if path.is_dir() or not path.exists():
        path = fetch_first(name, _FILES)
    tensors = read_safetensors(path) if path.suffix == ".safetensors" else read_pt(path)
    if isinstance(tensors, dict) and any(key.startswith(_OPEN_CLIP) for key in tensors):
        tensors = {
            key.removeprefix(_OPEN_CLIP): tensor
            for key, tensor in tensors.items()
            if key.startswith(_OPEN_CLIP)
        }
    if not isinstance(tensors, dict) or "pos_embed" not in tensors:
        raise ValueError(f"{path} holds no timm vision transformer (it has no pos_embed)")
    return tensors


def resample_pos_embed(pos_embed: np.ndarray, grid: int) -> np.ndarray:
    """Position embeddings on another grid, as timm resamples them when it loads a tower.

    timm (``resample_abs_pos_embed`` in ``timm/layers/pos_embed.py``) calls PyTorch's
    ``interpolate`` in float32 with ``mode="bicubic"`` and ``antialias=True``, which is the
    filter of Pillow's bicubic resize.

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
    """``pos_embed`` ``[1, N, D]`` for ``num_patches`` patches, still unread; dtype kept.

    Raises:
        ValueError: if it is no such tensor.
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
