"""Embeddings of the texts around pictures."""

import functools
from collections.abc import Sequence
from itertools import accumulate

import mlx.core as mx
import mlx.nn as nn


def embed_texts(model: nn.Module, texts: Sequence[Sequence[int]]) -> list[mx.array]:
    """Embeddings ``[T, hidden_size]`` of each of ``texts``, which are ids."""
    ids = _ids(tuple(map(tuple, texts)))
    embeddings = model.get_input_embeddings(ids).inputs_embeds.flatten(0, 1)
    return mx.split(embeddings, list(accumulate(map(len, texts)))[:-1])


@functools.lru_cache(maxsize=64)
def _ids(texts: tuple[tuple[int, ...], ...]) -> mx.array:
    """All ids of ``texts``, ``[1, T]``.

    They are kept, since a GPU needs 0.1 to 0.3 ms to read ids that the host has just written, and
    a robot has one instruction for many pictures.
    """
    return mx.array([[token for text in texts for token in text]], mx.int32)
