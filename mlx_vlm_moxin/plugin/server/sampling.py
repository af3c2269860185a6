"""Sampling per row: each request of a batch has its own settings and seed.

mlx-vlm's server samples a whole batch with the settings of its first request, and ignores
``min_p``. Its logits processors, which run row by row just before the batch is sampled, are used
here to record which row belongs to which request.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

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

    Rows with equal settings are drawn together: one by one, each would need several kernels.

    Args:
        fallback: the sampler of the batch's first request, mlx-vlm's choice for all rows,
            used if the rows of a step are not known. None samples greedily.
    """

    def __init__(self, fallback: Callable[[mx.array], mx.array] | None):
        self._fallback = fallback
        self._rows: list[tuple[Callable | None, int]] = []
        self._samplers: WeakValueDictionary[Hashable, Callable] = WeakValueDictionary()

    def share(self, settings: Hashable, make: Callable[[], Callable | None]) -> Callable | None:
        """The sampler of running requests with equal ``settings``; ``make()`` if there is none."""
        sampler = self._samplers.get(settings)
        if sampler is None:
            sampler = make()
            if sampler is not None:
                self._samplers[settings] = sampler
        return sampler

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
        if len(rows) != logprobs.shape[0]:
            sampler = self._fallback
            return mx.argmax(logprobs, axis=-1) if sampler is None else sampler(logprobs)
        groups: dict[int, list[int]] = {}
        for index, (sampler, _) in enumerate(rows):
            groups.setdefault(id(sampler), []).append(index)
        drawn = [
            _draw(
                rows[indices[0]][0],
                logprobs if len(groups) == 1 else logprobs[mx.array(indices)],
                [rows[index][1] for index in indices],
            )
            for indices in groups.values()
        ]
        if len(groups) == 1:
            return drawn[0]
        order = [index for indices in groups.values() for index in indices]
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return mx.concatenate(drawn)[mx.array(inverse)]


def _draw(sampler: Callable | None, logprobs: mx.array, positions: list[int]) -> mx.array:
    """Token ids ``[B]``; seeded samplers draw by the tokens' positions in their answers."""
    if sampler is None:
        return mx.argmax(logprobs, axis=-1)
    if hasattr(sampler, "sample_target"):
        return sampler.sample_target(logprobs, row_ids=[0] * len(positions), positions=positions)
    return sampler(logprobs)
