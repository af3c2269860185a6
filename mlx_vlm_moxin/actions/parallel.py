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

from mlx_vlm_moxin.actions.embeddings import embed_texts


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
    pictures = model.encode_image(pixel_values)  # first, since a GPU starts with the towers
    length = max(map(len, prompts))
    ends = [[config.eos_token_id] + [config.pad_token_id] * (length - len(p)) for p in prompts]
    texts = [[config.bos_token_id], *(text for pair in zip(prompts, ends) for text in pair)]
    start, *parts = embed_texts(model, texts)
    placeholders = mx.zeros((count, start.shape[-1]), start.dtype)
    seen = [pictures.reshape(len(prompts), -1, pictures.shape[-1])]
    if state is not None:
        dtype = model.proprio_projector.fc1.weight.dtype
        seen.append(model.proprio_projector(state.astype(dtype))[:, None])
    rows = []
    for index, (prompt, end) in enumerate(zip(parts[::2], parts[1::2])):
        before = [part[index].astype(start.dtype) for part in seen]
        rows += [start, *before, prompt, placeholders, end]
    x = mx.concatenate(rows).reshape(len(prompts), -1, start.shape[-1])
    return x, [x.shape[1] - len(end) + 1 for end in ends]


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
