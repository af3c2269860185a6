"""Sampling by row: each request of a batch with its own settings and its own seed.

mlx-vlm's server samples a whole batch with the settings of its first request, and ignores
``min_p``. Logits processors, which it does run row by row just before the batch is sampled,
tell here which row belongs to which request.
"""

from collections.abc import Callable
from functools import partial

import mlx.core as mx
from mlx_vlm.sample_utils import (
    apply_min_p,
    apply_p_less,
    apply_top_k,
    apply_top_n_sigma,
    apply_top_p,
    apply_typical_p,
)
from mlx_vlm.server.generation import GenerationArguments, _position_keys


class FilteredSampler:
    """Samples from what a request's filters leave, by its seed and the token's position.

    mlx-vlm's own sampler for the server has no such filters; those of its other functions draw
    from a state that all requests share, so that no seed repeats an answer.

    Args:
        args: at least one of ``min_p``, ``top_n_sigma``, ``p_less`` and ``typical_p`` is set.
    """

    def __init__(self, args: GenerationArguments):
        self._temperature = args.temperature
        self._seed = int(args.seed or 0)
        # In the order of mlx-vlm's make_sampler.
        choices = (
            (args.top_n_sigma > 0, partial(apply_top_n_sigma, n_sigma=args.top_n_sigma)),
            (args.p_less, partial(apply_p_less, temp=args.temperature)),
            (0 < args.typical_p < 1, partial(apply_typical_p, typical_p=args.typical_p)),
            (0 < args.top_p < 1, partial(apply_top_p, top_p=args.top_p)),
            (args.min_p > 0, partial(apply_min_p, min_p=args.min_p)),
            (args.top_k > 0, partial(apply_top_k, top_k=args.top_k)),
        )
        self._filters = [apply for is_set, apply in choices if is_set]

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Token ids ``[B]`` for ``logprobs`` ``[B, V]``, for rows whose position is unknown."""
        return mx.random.categorical(self._filtered(logprobs))

    def sample_target(
        self, logprobs: mx.array, *, row_ids: list[int], positions: list[int]
    ) -> mx.array:
        """Token ids ``[B]``, the same for the same seed, row and position."""
        keys = _position_keys(self._seed, row_ids, positions)
        rows = zip(self._filtered(logprobs), keys)
        return mx.stack([mx.random.categorical(row, key=key) for row, key in rows])

    def _filtered(self, logprobs: mx.array) -> mx.array:
        for apply in self._filters:
            logprobs = apply(logprobs)
        return logprobs / self._temperature


class RowSampler:
    """Samples each row of a batch as its own request asks.

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

        # The name under which mlx-vlm passes only the last token, which is all it costs.
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
