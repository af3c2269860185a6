"""OpenVLA-OFT and Moxin-VLA: a chunk of actions in one pass over the decoder, without a cache.

``<s>``, the pictures' tokens, the robot's state, the prompt, one zeroed placeholder for each value
of the chunk, ``</s>``. A placeholder's action comes from the position before it.

Reference: ``OpenVLAForActionPrediction.predict_action`` of moojink/openvla-oft; there attention
is made bidirectional in transformers' Llama (moojink/transformers-openvla-oft), and only there.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# Under the zeroed embeddings of the placeholders; its value has no effect.
PLACEHOLDER_ID = 1


def input_embeddings(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    pixel_values: mx.array,
    state: mx.array | None,
    count: int,
) -> tuple[mx.array, list[int]]:
    """The decoder's input, rows padded at their end.

    Args:
        prompts: ids without ``<s>``, for ``B`` rows.
        pixel_values: ``[B * n, C, H, W]``, the ``n`` pictures of a row in turn.
        state: normalised, ``[B, proprio_dim]``; None if the model reads none.
        count: placeholders.

    Returns:
        ``[B, T, hidden_size]``, and the length of each row.
    """
    config = model.config
    suffix = [PLACEHOLDER_ID] * count + [config.eos_token_id]
    length = max(map(len, prompts)) + len(suffix)
    rows = [[*prompt, *suffix] for prompt in prompts]
    padding = [[config.pad_token_id] * (length - len(row)) for row in rows]
    ids = mx.array([row + pad for row, pad in zip(rows, padding)])
    first = mx.array([len(prompt) for prompt in prompts])[:, None]
    positions = mx.arange(length)
    is_placeholder = (positions >= first) & (positions < first + count)

    embed_tokens = model.language_model.model.embed_tokens
    text = mx.where(is_placeholder[..., None], 0, embed_tokens(ids))
    start = embed_tokens(mx.full((len(rows), 1), config.bos_token_id))
    pictures = model.encode_image(pixel_values)
    pictures = pictures.reshape(len(rows), -1, pictures.shape[-1])
    parts = [start, pictures, text]
    if state is not None:
        dtype = model.proprio_projector.fc1.weight.dtype
        parts.insert(2, model.proprio_projector(state.astype(dtype))[:, None])
    prefix = sum(part.shape[1] for part in parts[:-1])
    parts = [part.astype(text.dtype) for part in parts]
    return mx.concatenate(parts, axis=1), [prefix + len(row) for row in rows]


def decode(
    language_model: Any,
    x: mx.array,
    lengths: Sequence[int],
    causal: bool,
    kept: slice = slice(None),
) -> mx.array:
    """Hidden states of ``x`` ``[B, T, hidden_size]`` after the final norm.

    Args:
        lengths: of the rows without padding.
        causal: whether a position sees only those before it.
        kept: positions that are given.
    """
    is_padded = min(lengths) < x.shape[1]
    # Padding comes after all tokens of a row, so a causal mask hides it.
    if causal or not is_padded:
        h = language_model.engine_hidden_states(x, causal, kept)
        if h is not None:
            return h
    decoder = language_model.model
    if causal:
        mask = decoder.attention_mask(x, None, None)
    else:
        is_token = mx.arange(x.shape[1]) < mx.array(lengths)[:, None, None, None]
        mask = is_token if is_padded else None
    for layer in decoder.layers:
        x = layer(x, mask, None)
    return decoder.norm(x[:, kept])


def action_hidden_states(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    pixel_values: mx.array,
    state: mx.array | None,
    count: int,
    causal: bool,
) -> mx.array:
    """Hidden states that actions are read from, ``[B, count, hidden_size]``.

    Args: those of ``input_embeddings`` and ``decode``.
    """
    x, lengths = input_embeddings(model, prompts, pixel_values, state, count)
    # From the prompt's last token to the last placeholder but one.
    first = [length - count - 2 for length in lengths]
    if len(set(first)) == 1:
        kept = slice(first[0], first[0] + count)
        return decode(model.language_model, x, lengths, causal, kept)
    h = decode(model.language_model, x, lengths, causal)
    positions = mx.array(first)[:, None] + mx.arange(count)
    return mx.take_along_axis(h, positions[..., None], axis=1)
