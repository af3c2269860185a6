"""Vision towers: DINOv2, SigLIP, CLIP and ViT, one or two of them on one picture.

Papers: https://arxiv.org/abs/2304.07193, https://arxiv.org/abs/2309.16588 (DINOv2 with
registers), https://arxiv.org/abs/2303.15343 (SigLIP), https://arxiv.org/abs/2103.00020 (CLIP),
https://arxiv.org/abs/2106.10270 (ViT). Architecture and parameter names: timm 0.9.16,
``vision_transformer.py``; the models are in ``towers.py``.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from .towers import TowerConfig
from .vision_config import VisionConfig


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens, ``[B, H, W, 3] -> [B, (H//P)(W//P), D]``."""

    def __init__(self, config: TowerConfig, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(
            3,
            config.hidden_size,
            kernel_size=patch_size,
            stride=patch_size,
            bias=config.patch_bias,
        )

    def __call__(self, x: mx.array) -> mx.array:
        return self.proj(x).flatten(1, 2)


class Attention(nn.Module):
    """Bidirectional self-attention; ``qkv`` rows are ``[3, heads, head_dim]``."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scale = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, -1)
        queries, keys, values = qkv.transpose(2, 0, 3, 1, 4)
        x = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        return self.proj(x.transpose(0, 2, 1, 3).reshape(B, N, D))


class MLP(nn.Module):
    """``fc2(gelu(fc1(x)))``: the exact GELU (not tanh, as SigLIP in transformers) or CLIP's."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.activation = config.activation
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.fc1(x)
        x = nn.gelu_fast_approx(x) if self.activation == "quick_gelu" else nn.gelu(x)
        return self.fc2(x)


class LayerScale(nn.Module):
    """Per-channel scale of a residual branch, ``x * gamma``."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.gamma = mx.ones((hidden_size,))

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: ``x + ls1(attn(norm1(x)))``, then the same with the MLP."""

    def __init__(self, config: TowerConfig):
        super().__init__()

        def layer_scale() -> nn.Module:
            return LayerScale(config.hidden_size) if config.layer_scale else nn.Identity()

        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.ls1 = layer_scale()
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.ls2 = layer_scale()

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """One tower, up to its second-to-last block and without the final norm.

    The class token has a position embedding in CLIP and ViT. In DINOv2 position embeddings
    cover the patches only (timm's ``no_embed_class``): class and register tokens precede the
    patches after they are added. All of them are removed at the end.
    """

    def __init__(self, config: TowerConfig, num_patches: int, patch_size: int):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.patch_embed = PatchEmbed(config, patch_size)
        self.pos_embed = mx.zeros((1, num_patches + int(config.class_position), width))
        if config.class_token:
            self.cls_token = mx.zeros((1, 1, width))
        if config.num_register_tokens:
            self.reg_token = mx.zeros((1, config.num_register_tokens, width))
        if config.pre_norm:
            self.norm_pre = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.blocks = [Block(config) for _ in range(config.num_blocks)]

    def embed(self, x: mx.array) -> mx.array:
        """``[B, H, W, 3]`` normalised pixels to the first block's input ``[B, N, hidden_size]``."""
        x = self.patch_embed(x)
        prefix = [self[name] for name in ("cls_token", "reg_token") if name in self]
        prefix = [mx.broadcast_to(t, (x.shape[0], *t.shape[1:])) for t in prefix]
        if self.config.class_position:
            class_token, *prefix = prefix
            x = mx.concatenate([class_token, x], axis=1)
        x = mx.concatenate([*prefix, x + self.pos_embed], axis=1)
        return self.norm_pre(x) if "norm_pre" in self else x

    def patches(self, x: mx.array) -> mx.array:
        """The patches among all tokens ``[B, N, hidden_size]``."""
        return x[:, self.config.num_prefix_tokens :]

    def apply_blocks(self, x: mx.array) -> mx.array:
        """All tokens ``[B, N, hidden_size]`` after the last block."""
        for block in self.blocks:
            x = block(x)
        return x

    def __call__(self, x: mx.array) -> mx.array:
        """``[B, H, W, 3]`` normalised pixels to ``[B, num_patches, hidden_size]``."""
        return self.patches(self.apply_blocks(self.embed(x)))


class VisionModel(nn.Module):
    """One or two towers on one picture, their features concatenated channel by channel."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.model_type = config.model_type
        for name, tower in config.towers.items():
            self[name] = VisionTransformer(tower, config.num_patches, config.patch_size)

    @property
    def towers(self) -> list[VisionTransformer]:
        """The towers, in the order of their features."""
        return [self[name] for name in self.config.towers]

    def engine_embed(
        self, towers: Sequence[VisionTransformer], pixel_values: mx.array
    ) -> list[mx.array] | None:
        """Each tower's ``embed`` of its channels by an accelerated pass; None if not supported.

        There is none in plain MLX. A plug-in may replace this method of the class.
        """
        return None

    def engine_blocks(
        self, towers: Sequence[VisionTransformer], tokens: Sequence[mx.array]
    ) -> list[mx.array] | None:
        """Each tower's ``apply_blocks`` by an accelerated pass; None if it is not supported.

        There is none in plain MLX. A plug-in may replace this method of the class.
        """
        return None

    def embed(self, pixel_values: mx.array) -> list[mx.array]:
        """Each tower's tokens ``[B, N, D]`` before its blocks; arguments as in ``__call__``."""
        pixels = pixel_values.astype(self.towers[0].pos_embed.dtype).transpose(0, 2, 3, 1)
        inputs = mx.split(pixels, len(self.towers), axis=-1)
        return [tower.embed(x) for tower, x in zip(self.towers, inputs)]

    def __call__(self, pixel_values: mx.array) -> mx.array:
        """Patch features.

        Args:
            pixel_values: ``[B, 3 * towers, H, W]``, three channels for each tower in its
                normalisation; computed in the dtype of the towers' weights.

        Returns:
            ``[B, num_patches, hidden_size]``, the towers' widths added up.
        """
        towers = self.towers
        tokens = self.engine_embed(towers, pixel_values)
        if tokens is None:
            tokens = self.embed(pixel_values)
        outputs = self.engine_blocks(towers, tokens)
        if outputs is None:
            outputs = [tower.apply_blocks(x) for tower, x in zip(towers, tokens)]
        features = [tower.patches(x) for tower, x in zip(towers, outputs)]
        return mx.concatenate(features, axis=-1)
