"""Sampling per row: each request of a batch has its own settings and seed.

mlx-vlm's server samples a whole batch with the settings of its first request, and ignores
``min_p``. Its logits processors, which run row by row just before the batch is sampled, are used
here to record which row belongs to which request.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_vlm.sample_utils import apply_min_p, apply_p_less, apply_top_n_sigma, apply_typical_p
from mlx_vlm.server.generation import GenerationArguments


class FilteredSampler:
    """mlx-vlm's sampler for the server with additional filters.

    mlx-vlm ignores these filters (``min_p``) or uses a sampler whose random state is shared by all
    requests, so that no seed repeats an answer.

    Args:
        sampler: draws by seed and position, after ``top_k`` and ``top_p``.
        args: the request's, with at least one of the filters.
    """

    def __init__(self, sampler: Any, args: GenerationArguments):
        self._sampler = sampler
        filters = (
            (args.top_n_sigma > 0, partial(apply_top_n_sigma, n_sigma=args.top_n_sigma)),
            (args.p_less, partial(apply_p_less, temp=args.temperature)),
            (0 < args.typical_p < 1, partial(apply_typical_p, typical_p=args.typical_p)),
            (args.min_p > 0, partial(apply_min_p, min_p=args.min_p)),
        )
        self._filters = [apply for is_set, apply in filters if is_set]

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Token ids ``[B]`` for ``logprobs`` ``[B, V]``, for rows whose position is unknown."""
        return self._sampler(self._filtered(logprobs))

    def sample_target(
        self, logprobs: mx.array, *, row_ids: list[int], positions: list[int]
    ) -> mx.array:
        """Token ids ``[B]``, the same for the same seed, row and position."""
        filtered = self._filtered(logprobs)
        return self._sampler.sample_target(filtered, row_ids=row_ids, positions=positions)

    def _filtered(self, logprobs: mx.array) -> mx.array:
        for apply in self._filters:
            logprobs = apply(logprobs)
        return logprobs


class RowSampler:
    """Samples each row of a batch with the settings of its request.

    Args:
        fallback: the sampler of the batch's first request, mlx-vlm's choice for all rows,
            used if the rows of a step are not known. None samples greedily.
    """

    def __init__(self, fallback: Callable[[mx.array], mx.array] | None):
        self._fallback = fallback
        self._rows: list[tuple[Callable | None, int]] = []

    def row(self, sampler: Callable | None) -> Callable[[mx.array, mx.array], mx.array]:
        """A logits processor that announces a row, to be sampled with ``sampler``."""
        position = -1

        def announce(tokens: mx.array, logits: mx.array) -> mx.array:
            nonlocal position
            position += 1
            self._rows.append((sampler, position))
            return logits

        # With this attribute mlx-vlm passes only the last token, which is cheaper.
        announce.process_last_token = announce
        return announce

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Token ids ``[B]`` for ``logprobs`` ``[B, V]``."""
        rows, self._rows = self._rows, []
        greedy = mx.argmax(logprobs, axis=-1)
        if len(rows) != logprobs.shape[0]:
            return greedy if self._fallback is None else self._fallback(logprobs)
        if all(sampler is None for sampler, _ in rows):
            return greedy
        return mx.concatenate(
            [
                greedy[i : i + 1] if sampler is None else _draw(sampler, logprobs[i : i + 1], n)
                for i, (sampler, n) in enumerate(rows)
            ]
        )


def _draw(sampler: Callable, logprobs: mx.array, position: int) -> mx.array:
    """One token id; seeded samplers draw by the token's position in the answer."""
    if hasattr(sampler, "sample_target"):
        return sampler.sample_target(logprobs, row_ids=[0], positions=[position])
    return sampler(logprobs)
