"""The vision transformers of the Prismatic family, as rows of data.

Names and sizes: timm 0.9.16, ``timm/models/vision_transformer.py``.
"""

from dataclasses import dataclass, field
from typing import Any

from ..base import BaseModelConfig
from .validation import MAX_LAYERS, check_settings

ACTIVATIONS = ("gelu", "quick_gelu")


@dataclass
class TowerConfig(BaseModelConfig):
    """One timm vision transformer.

    Attributes:
        num_hidden_layers: blocks of the pretrained tower. Its features are the output of
            block ``num_hidden_layers - 2``, so one block less is built.
        intermediate_size: width of the blocks' MLP.
        num_register_tokens: learned tokens between the class token and the patches.
        class_token: whether a class token precedes them.
        class_position: whether the position embedding has a row for the class token.
        layer_scale: whether each residual branch has a scale per channel.
        pre_norm: whether a LayerNorm precedes the blocks.
        patch_bias: whether the patch embedding has a bias.
        activation: of the MLP: ``"gelu"`` (exact) or ``"quick_gelu"``,
            ``x * sigmoid(1.702 * x)``.
    """

    hidden_size: int = 1024
    num_hidden_layers: int = field(default=24, metadata={"low": 2, "high": MAX_LAYERS})
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    num_register_tokens: int = field(default=0, metadata={"low": 0})
    class_token: bool = False
    class_position: bool = False
    layer_scale: bool = False
    pre_norm: bool = False
    patch_bias: bool = True
    layer_norm_eps: float = field(default=1e-6, metadata={"high": 1})
    activation: str = field(default="gelu", metadata={"choices": ACTIVATIONS})

    def __post_init__(self):
        check_settings(TowerConfig, vars(self), "vision_config")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"config.json: a vision tower has hidden_size {self.hidden_size}, which is no "
                f"multiple of num_attention_heads {self.num_attention_heads}"
            )

    @property
    def num_blocks(self) -> int:
        """Blocks that are built and run."""
        return self.num_hidden_layers - 1

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens before the patch tokens."""
        return self.num_register_tokens + int(self.class_token)


@dataclass(frozen=True)
class TimmModel:
    """A tower as timm publishes it.

    Attributes:
        name: the tower's name in this package: an attribute of ``VisionConfig`` and of
            ``VisionModel``.
        image_size: side of the pictures that the Prismatic family gives it, in pixels.
        patch_size: side of a patch, in pixels.
        image_mean, image_std: normalisation of RGB values in [0, 1].
        config: keyword arguments of ``TowerConfig``.
    """

    name: str
    image_size: int
    patch_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    config: dict[str, Any]

    def tower_config(self, **sizes: int) -> TowerConfig:
        """The tower's configuration, ``sizes`` in place of the published ones."""
        return TowerConfig(**{**self.config, **sizes})


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

_DINO = {"num_register_tokens": 4, "class_token": True, "layer_scale": True}
# The MLP's width is int(3.7362 * 1152).
_SIGLIP = {"hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304}
_CLIP = {
    "class_token": True,
    "class_position": True,
    "pre_norm": True,
    "patch_bias": False,
    "layer_norm_eps": 1e-5,
    "activation": "quick_gelu",
}
_IN1K = {"class_token": True, "class_position": True}

DINO_ID = "vit_large_patch14_reg4_dinov2.lvd142m"
SIGLIP_ID = "vit_so400m_patch14_siglip_224"
TIMM_MODELS = {
    DINO_ID: TimmModel("dino", 224, 14, *_IMAGENET, _DINO),
    SIGLIP_ID: TimmModel("siglip", 224, 14, *_HALF, _SIGLIP),
    "vit_so400m_patch14_siglip_384": TimmModel("siglip", 384, 14, *_HALF, _SIGLIP),
    "vit_large_patch14_clip_224.openai": TimmModel("clip", 224, 14, *_OPENAI, _CLIP),
    "vit_large_patch14_clip_336.openai": TimmModel("clip", 336, 14, *_OPENAI, _CLIP),
    "vit_large_patch16_224.augreg_in21k_ft_in1k": TimmModel("in1k", 224, 16, *_HALF, _IN1K),
}
# Every kind of tower. Features of two towers are concatenated in this order.
TOWER_NAMES = ("dino", "siglip", "clip", "in1k")
# A timm model of each kind: sizes of pictures differ, the rest does not.
MODELS_BY_NAME = {model.name: model for model in TIMM_MODELS.values()}
