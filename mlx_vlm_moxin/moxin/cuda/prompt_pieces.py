"""Long prompts in pieces, each of which is appended to the caches before the next one.

mlx-vlm passes up to 2,048 tokens at a time, which would need several times the memory of a piece
and would not be faster.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import mlx.core as mx

from ...cache import BatchKVCache, KVCache
from .errors import UnsupportedError

# Tokens of each sequence in one piece.
MAX_TOKENS = 512


def in_pieces(
    run: Callable[..., mx.array],
    inputs: mx.array,
    inputs_embeds: mx.array | None,
    cache: Sequence[KVCache | BatchKVCache],
    logits_to_keep: int,
) -> mx.array:
    """``run`` with the other arguments, in pieces of equal lengths up to ``MAX_TOKENS``.

    Args:
        run: fills ``cache`` with the tokens of ``inputs``, and returns logits of the last ones.
        inputs: ids ``[B, T]``.
        inputs_embeds: their embeddings ``[B, T, hidden]``, if given instead of ids.
        cache: one per layer. As it was, if ``run`` fails.
        logits_to_keep: number of last tokens that get logits; 0 for all.

    Returns:
        ``[B, T or logits_to_keep, vocab_size]``.
    """
    length = inputs.shape[1]
    if length <= MAX_TOKENS:
        return run(inputs, inputs_embeds, cache, logits_to_keep)
    first_kept = max(0, length - (logits_to_keep or length))
    count = math.ceil(length / MAX_TOKENS)
    ends = [length * index // count for index in range(count + 1)]
    logits = []
    for start, end in itertools.pairwise(ends):
        embeddings = None if inputs_embeds is None else inputs_embeds[:, start:end]
        kept = end - max(start, first_kept)
        try:
            result = run(inputs[:, start:end], embeddings, cache, max(1, kept))
        except (UnsupportedError, RuntimeError):
            for layer in cache:
                layer.trim(start)
            raise
        if kept > 0:
            logits.append(result)
    return mx.concatenate(logits, axis=1)
