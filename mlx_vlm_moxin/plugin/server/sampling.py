"""Sampling per row: each request of a batch has its own settings and seed.

mlx-vlm's server samples a whole batch with the settings of its first request, and ignores
``min_p``. Here a row's request is found by the id under which the batch has it. Logits processors
would be passed row by row too, but mlx-vlm then waits for each token before it starts the next
step, so the GPU would be idle while Python prepares it.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import mlx.core as mx
from mlx_vlm.sample_utils import apply_min_p, apply_p_less, apply_top_n_sigma, apply_typical_p
from mlx_vlm.server.generation import (
    DEFAULT_SEED,
    GenerationArguments,
    _position_seed,
    _PositionedTargetSampler,
)

# The arguments of a request on which its sampler depends; rows that differ only in their seeds are
# drawn together.
SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "top_n_sigma",
    "p_less",
    "typical_p",
)


class SeededSampler:
    """mlx-vlm's sampler for rows with equal settings, each with its own seed, with all filters.

    mlx-vlm's has one seed. It ignores some filters (``min_p``), or uses a sampler whose random
    state is shared by all requests, so that no seed repeats an answer.

    Args:
        args: a request's; its seed is not used.
    """

    def __init__(self, args: GenerationArguments):
        self._sampler = _PositionedTargetSampler(
            temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, seed=0
        )
        filters = (
            (args.top_n_sigma > 0, partial(apply_top_n_sigma, n_sigma=args.top_n_sigma)),
            (args.p_less, partial(apply_p_less, temp=args.temperature)),
            (0 < args.typical_p < 1, partial(apply_typical_p, typical_p=args.typical_p)),
            (args.min_p > 0, partial(apply_min_p, min_p=args.min_p)),
        )
        self._filters = [apply for is_set, apply in filters if is_set]

    def draw(self, logprobs: mx.array, seeds: Sequence[int], positions: Sequence[int]) -> mx.array:
        """Token ids ``[B]`` for ``logprobs`` ``[B, V]``, the same for the same seed and position.

        Args:
            logprobs: of the rows.
            seeds: of their requests.
            positions: of the tokens in their answers, from 0.
        """
        for apply in self._filters:
            logprobs = apply(logprobs)
        # As mlx.core.random.key makes them, all in one array.
        keys = mx.array(
            [
                (0, _position_seed(seed, 0, position))
                for seed, position in zip(seeds, positions, strict=True)
            ],
            mx.uint32,
        )
        sampler = self._sampler
        draw_one = sampler._sample_top_p_one if 0 < sampler.top_p < 1 else sampler._sample_one
        return mx.vmap(draw_one)(sampler._apply_top_k(logprobs), keys)


@dataclass(frozen=True)
class Row:
    """How one request is sampled.

    Attributes:
        sampler: shared by the requests with its settings; None samples greedily.
        seed: the request's.
    """

    sampler: SeededSampler | None
    seed: int = 0


class RowSampler:
    """Samples each row of a batch with the settings of its request.

    Rows with equal settings are drawn together: one by one, each would need several kernels.

    Args:
        fallback: the sampler of the batch's first request, mlx-vlm's choice for all rows,
            used if the rows of a step are not known. None samples greedily.
    """

    def __init__(self, fallback: Callable[[mx.array], mx.array] | None):
        self._fallback = fallback
        self._batches: Any = None
        self._rows: Mapping[int, Row] = {}
        self._samplers: WeakValueDictionary[Hashable, SeededSampler] = WeakValueDictionary()

    def row(self, args: GenerationArguments) -> Row:
        """How a request with ``args`` is sampled."""
        if args.temperature == 0:
            return Row(None)
        settings = tuple(getattr(args, name) for name in SETTINGS)
        sampler = self._samplers.get(settings)
        if sampler is None:
            sampler = self._samplers[settings] = SeededSampler(args)
        return Row(sampler, DEFAULT_SEED if args.seed is None else args.seed)

    def begin(self, batches: Any, rows: Mapping[int, Row]) -> None:
        """Prepare a step of mlx-vlm's generator.

        Args:
            batches: mlx-vlm's ``BatchGenerator``.
            rows: of all requests in its batches, by the ids under which it has them.
        """
        self._batches, self._rows = batches, rows

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Token ids ``[B]`` for ``logprobs`` ``[B, V]`` of unknown rows."""
        sampler = self._fallback
        return mx.argmax(logprobs, axis=-1) if sampler is None else sampler(logprobs)

    def sample_target(
        self, logprobs: mx.array, *, row_ids: Sequence[int], positions: Sequence[int]
    ) -> mx.array:
        """Token ids ``[B]`` for ``logprobs`` ``[B, V]``; called by mlx-vlm instead of the sampler.

        Args:
            logprobs: of a batch of prompts or of running answers.
            row_ids: zeros.
            positions: of the tokens in their answers. Only a prompt's is 0.
        """
        name = "_generation_batch" if any(positions) else "_prompt_batch"
        uids = getattr(getattr(self._batches, name, None), "uids", [])
        rows = [self._rows[uid] for uid in uids if uid in self._rows]
        if len(rows) != logprobs.shape[0]:
            return self(logprobs)
        return draw(logprobs, rows, positions)


def draw(logprobs: mx.array, rows: Sequence[Row], positions: Sequence[int]) -> mx.array:
    """Token ids ``[B]`` for ``logprobs`` ``[B, V]``, rows with the same sampler together."""
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(id(row.sampler), []).append(index)
    if len(groups) == 1:
        return _draw(logprobs, rows, positions)
    order = [index for indices in groups.values() for index in indices]
    drawn = [
        _draw(
            logprobs[mx.array(indices)],
            [rows[index] for index in indices],
            [positions[index] for index in indices],
        )
        for indices in groups.values()
    ]
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return mx.concatenate(drawn)[mx.array(inverse)]


def _draw(logprobs: mx.array, rows: Sequence[Row], positions: Sequence[int]) -> mx.array:
    """The same for rows with one sampler."""
    sampler = rows[0].sampler
    if sampler is None:
        return mx.argmax(logprobs, axis=-1)
    return sampler.draw(logprobs, [row.seed for row in rows], positions)
