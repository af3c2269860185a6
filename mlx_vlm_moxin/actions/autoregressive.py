"""OpenVLA: the tokens of an action one after another, greedily."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx_vlm.models.cache import BatchKVCache, make_prompt_cache

from mlx_vlm_moxin.actions.embeddings import embed_texts


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
    length = 1 + config.vision_config.num_patches + max(map(len, prompts))
    padding = [length - 1 - config.vision_config.num_patches - len(prompt) for prompt in prompts]
    embeds = input_embeddings(model, prompts, padding, pixel_values)
    if any(padding):
        cache = [BatchKVCache(padding) for _ in decoder.layers]
    else:
        cache = make_prompt_cache(decoder)

    def following(ids: mx.array, **kwargs) -> mx.array:
        logits = decoder(ids, cache=cache, logits_to_keep=1, **kwargs).logits[:, -1]
        if allowed is not None:
            logits = logits[:, allowed.start : allowed.stop]
        token = mx.argmax(logits, axis=-1, keepdims=True)
        return token if allowed is None else token + allowed.start

    # Of the ids, the decoder only reads the shape: it is given their embeddings.
    ids = mx.full(embeds.shape[:2], config.pad_token_id)
    tokens = [following(ids, inputs_embeds=embeds)]
    while len(tokens) < action_dim:
        # The GPU computes this token while the next step is recorded.
        mx.async_eval(tokens[-1])
        tokens.append(following(tokens[-1]))
    return mx.concatenate(tokens, axis=1).astype(mx.int32)


def input_embeddings(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    padding: Sequence[int],
    pixel_values: mx.array,
) -> mx.array:
    """The decoder's input: padding, ``<s>``, the picture's tokens, the prompt.

    Args:
        prompts: ids without ``<s>``, for ``B`` rows.
        padding: tokens at the start of each row.
        pixel_values: ``[B, C, H, W]``.

    Returns:
        ``[B, T, hidden_size]``.
    """
    config = model.config
    pictures = model.encode_image(pixel_values)  # first, since a GPU starts with the towers
    starts = [[config.pad_token_id] * pad + [config.bos_token_id] for pad in padding]
    texts = [text for pair in zip(starts, prompts) for text in pair]
    parts = embed_texts(model, texts)
    rows = zip(parts[::2], pictures.astype(parts[0].dtype), parts[1::2])
    return mx.concatenate([part for row in rows for part in row]).reshape(
        len(prompts), -1, pictures.shape[-1]
    )
