"""Structured output without Metal.

mlx-vlm masks the logits that a JSON schema forbids with a Metal kernel, which fails on MLX's other
backends for every model. There, the same mask is computed by MLX operations.
"""

from collections.abc import Callable

import mlx.core as mx


def apply_llguidance_mask(logits: mx.array, mask: mx.array) -> mx.array:
    """Logits ``[B, V]``, minus infinity where the mask has no bit.

    Args:
        logits: ``[B, V]`` or ``[V]``.
        mask: ``[B, W]`` or ``[W]`` int32, the bit of token ``t`` at ``t % 32`` of word
            ``t // 32``; tokens after the last word are forbidden.
    """
    logits, mask = mx.atleast_2d(logits), mx.atleast_2d(mask)
    tokens = mx.arange(logits.shape[-1])
    words = mx.take(mask, mx.minimum(tokens // 32, mask.shape[-1] - 1), axis=1)
    allowed = ((words >> (tokens % 32)) & 1).astype(mx.bool_) & (tokens < 32 * mask.shape[-1])
    return mx.where(allowed, logits, -mx.inf)


def mask_function(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """``mlx_vlm.structured._apply_llguidance_mask`` for this machine's backend.

    Args:
        original: mlx-vlm's function, used with Metal.
    """
    return original if mx.metal.is_available() else apply_llguidance_mask
