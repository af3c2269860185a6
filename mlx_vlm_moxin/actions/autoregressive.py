"""OpenVLA: the tokens of an action one after another, greedily."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx_vlm.models.cache import BatchKVCache, make_prompt_cache


def predict_ids(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    pixel_values: mx.array,
    action_dim: int,
    allowed: range | None = None,
) -> mx.array:
    """Exactly ``action_dim`` tokens for each prompt.

    The published code stops at ``</s>`` and then decodes tokens of the prompt as actions. Here
    ``</s>`` is treated like any other id without an action: it counts as the nearest bin.

    Args:
        model: of ``mlx_vlm.models.moxin``.
        prompts: ids without ``<s>``, for ``B`` rows.
        pixel_values: ``[B, C, H, W]``.
        action_dim: values of an action.
        allowed: ids that may be chosen; None for all.

    Returns:
        ``[B, action_dim]`` int32, not yet evaluated.
    """
    config, decoder = model.config, model.language_model
    picture = [config.image_token_index] * config.vision_config.num_patches
    rows = [[config.bos_token_id, *picture, *prompt] for prompt in prompts]
    length = max(map(len, rows))
    padding = [length - len(row) for row in rows]
    ids = mx.array([[config.pad_token_id] * pad + row for pad, row in zip(padding, rows)])
    if any(padding):
        cache = [BatchKVCache(padding) for _ in decoder.layers]
    else:
        cache = make_prompt_cache(decoder)
    embeds = model.get_input_embeddings(ids, pixel_values).inputs_embeds

    def following(ids: mx.array, **kwargs) -> mx.array:
        logits = decoder(ids, cache=cache, logits_to_keep=1, **kwargs).logits[:, -1]
        if allowed is not None:
            logits = logits[:, allowed.start : allowed.stop]
        token = mx.argmax(logits, axis=-1, keepdims=True).astype(mx.int32)
        return token if allowed is None else token + allowed.start

    tokens = [following(ids, inputs_embeds=embeds)]
    while len(tokens) < action_dim:
        # The GPU computes this token while the next step is recorded.
        mx.async_eval(tokens[-1])
        tokens.append(following(tokens[-1]))
    return mx.concatenate(tokens, axis=1)
