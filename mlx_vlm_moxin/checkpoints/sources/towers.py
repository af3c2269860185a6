"""The two vision towers as timm publishes them, for native checkpoints without their own."""

import mlx.core as mx
import numpy as np

from mlx_vlm_moxin.checkpoints.pos_embed import resample_pos_embed
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
    if not path.is_file():
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
