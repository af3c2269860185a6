"""Embeddings of the texts around pictures."""

from collections.abc import Sequence
from itertools import accumulate

import mlx.core as mx
import mlx.nn as nn


def embed_texts(model: nn.Module, texts: Sequence[Sequence[int]]) -> list[mx.array]:
    """Embeddings ``[T, hidden_size]`` of each of ``texts``, which are ids.

    They are submitted at once. A GPU needs 0.1 to 0.3 ms to read ids that the host has just
    written, so it does that while Python records the vision towers.
    """
    ids = mx.array([[token for text in texts for token in text]], mx.int32)
    embeddings = model.get_input_embeddings(ids).inputs_embeds[0]
    mx.async_eval(embeddings)
    return mx.split(embeddings, list(accumulate(map(len, texts)))[:-1])
