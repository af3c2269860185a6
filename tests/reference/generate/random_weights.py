"""Random values for which every detail of the computation changes the outputs.

Residual branches start small, so that norms see variances near their eps; projections
into attention and activations have gains above one, so that softmax and GELU are far
from linear; norm weights, LayerScale and biases are far from one and zero.
"""

import fnmatch
import math

import torch

# Pattern of the name: standard deviation of a bias or an embedding.
STD = {
    "norm*.bias": 0.2,
    "*.norm*.bias": 0.2,
    "*attn.proj.bias": 0.004,
    "*mlp.fc2.bias": 0.004,
    "attn_pool.proj.bias": 0.004,
    "patch_embed.proj.bias": 0.006,
    "fc3.bias": 0.006,
    "only.bias": 0.006,
    "*.bias": 0.3,
    "fc?.bias": 0.3,
    "cls_token": 0.012,
    "reg_token": 0.012,
    "pos_embed": 0.012,
    "attn_pool.latent": 0.5,
    "model.embed_tokens.weight": 0.02,
}
# Pattern of the name: gain of a matrix, its standard deviation times sqrt(fan in).
GAIN = {
    "patch_embed.proj.weight": 0.02,
    "*attn.qkv.weight": 1.6,
    "attn_pool.q.weight": 1.6,
    "attn_pool.kv.weight": 1.6,
    "*attn.proj.weight": 0.03,
    "attn_pool.proj.weight": 0.03,
    "*mlp.fc1.weight": 1.3,
    "*mlp.fc2.weight": 0.03,
    "fc1.weight": 30.0,
    "fc2.weight": 1.6,
    "fc3.weight": 0.06,
    "only.weight": 2.0,
    "*.q_proj.weight": 1.7,
    "*.k_proj.weight": 1.7,
    "*.v_proj.weight": 1.0,
    "*.o_proj.weight": 0.05,
    "*.gate_proj.weight": 1.4,
    "*.up_proj.weight": 1.4,
    "*.down_proj.weight": 0.03,
    "lm_head.weight": 3.0,
}
# Scales are uniform in this range.
SCALES = ("*norm*.weight", "*.gamma")
SCALE_RANGE = (0.5, 1.5)
# Kept in float32 on the hub; everything else is bfloat16.
FLOAT32 = ("pos_embed",)


def _match(name: str, table: dict[str, float]) -> float | None:
    return next((value for key, value in table.items() if fnmatch.fnmatch(name, key)), None)


def fill(state: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random tensors of ``state``'s names and shapes, bfloat16 but for ``FLOAT32``."""
    filled = {}
    for name, like in state.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in SCALES):
            value = torch.empty(like.shape).uniform_(*SCALE_RANGE, generator=generator)
        else:
            std = _match(name, STD)
            if std is None:
                std = _match(name, GAIN) / math.sqrt(like.numel() / like.shape[0])
            value = torch.randn(like.shape, generator=generator) * std
        filled[name] = value if name in FLOAT32 else value.to(torch.bfloat16)
    return filled
