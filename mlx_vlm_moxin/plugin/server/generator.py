"""Generation on the server, one request's settings apart from the next one's.

mlx-vlm's server samples a whole batch with the settings of its first request, and knows
no ``stop``. Both are done here with what it offers per request: logits processors, which
run row by row just before the batch is sampled, and the iterator over an answer's tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_vlm.server.generation import (
    GenerationArguments,
    PromptTooLongError,
    ResponseGenerator,
    StreamingToken,
)
from mlx_vlm.utils import load_image

from mlx_vlm_moxin.plugin.server.between_steps import WorkBetweenSteps
from mlx_vlm_moxin.plugin.server.errors import BadRequestError, sentence


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


class StoppingTokens:
    """The tokens of an answer up to the stop string that is complete first.

    Of two that are complete at once, the longer one counts. Text that may be the beginning
    of a stop string is held back until it is known.

    Args:
        tokens: the iterator that ``ResponseGenerator.generate`` returns.
        stop: strings, none empty.
        include_stop: give out the stop string too, as the end of the text.
    """

    def __init__(self, tokens: Any, stop: Sequence[str], include_stop: bool = False):
        self._tokens = tokens
        self._stop = stop
        self._include_stop = include_stop
        self._held = ""
        self._ended = False

    def __iter__(self) -> Iterator[StreamingToken]:
        return self

    def __next__(self) -> StreamingToken:
        if self._ended:
            raise StopIteration
        token = next(self._tokens)
        text = self._held + token.text
        starts = [(text.index(stop), len(stop)) for stop in self._stop if stop in text]
        found = [(start + length, start) for start, length in starts]
        if found:
            self._ended = True
            self._tokens.close()
            end, start = min(found)
            text = text[: end if self._include_stop else start]
            return replace(token, text=text, finish_reason="stop")
        held = 0 if token.finish_reason else self._possible_start(text)
        self._held = text[len(text) - held :]
        return replace(token, text=text[: len(text) - held])

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of ``text`` with which a stop string begins."""
        longest = max(len(stop) for stop in self._stop) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0

    def close(self) -> None:
        """End the request if it is still under way."""
        self._tokens.close()


class MoxinResponseGenerator(WorkBetweenSteps):
    """mlx-vlm's generator with ``stop``, sampling by row, and pictures read beforehand."""

    # Of the batch under way; None with a drafter, and until the first batch starts.
    _row_sampler: RowSampler | None = None

    def generate(
        self,
        prompt: str,
        images: list | None = None,
        audio: list | None = None,
        args: GenerationArguments | None = None,
        videos: list | None = None,
    ) -> tuple[Any, Any]:
        """Queue a request; its context and an iterator over its tokens.

        Raises:
            UnusableInputError: see :func:`_refuse_audio`.
        """
        _refuse_audio(audio, videos)
        context, tokens = super().generate(prompt, images, audio, args, videos)
        stop = getattr(args, "stop", None)
        if not stop:
            return context, tokens
        return context, StoppingTokens(tokens, stop, args.include_stop)

    def validate_context_budget(
        self,
        prompt: str,
        images: list | None = None,
        audio: list | None = None,
        args: GenerationArguments | None = None,
        videos: list | None = None,
    ) -> None:
        """Called before a stream opens: read the pictures while errors can be answered.

        Raises:
            UnusableInputError: see :func:`_refuse_audio` and ``load_image``.
        """
        _refuse_audio(audio, videos)
        images = images or []
        try:
            images[:] = [load_image(image) for image in images]
        except ValueError as error:
            raise UnusableInputError(sentence(error)) from error
        super().validate_context_budget(prompt, images, audio, args, videos)

    def _make_sampler(self, args: GenerationArguments) -> Callable | None:
        """The sampler of a new batch, whose first request has ``args``."""
        sampler = super()._make_sampler(args)
        if self.draft_model is not None:
            return sampler
        self._row_sampler = RowSampler(sampler)
        return self._row_sampler

    def _make_logits_processors(
        self, args: GenerationArguments, input_ids: mx.array | None = None
    ) -> list[Callable]:
        """The logits processors of one request in the batch."""
        processors = super()._make_logits_processors(args, input_ids)
        if self._row_sampler is not None:
            processors.append(self._row_sampler.row(super()._make_sampler(args)))
        return processors


class UnusableInputError(BadRequestError, PromptTooLongError):
    """Input that cannot be used, as the one error that the server expects of a generator."""


def _refuse_audio(audio: list | None, videos: list | None) -> None:
    """Raise :class:`UnusableInputError` for what mlx-vlm would hand to the processor."""
    if audio or videos:
        raise UnusableInputError("Moxin takes text and a picture, but no audio and no video")


def adopt(generator: ResponseGenerator) -> None:
    """Make a running generator a :class:`MoxinResponseGenerator`, in place. Idempotent.

    It exists before the model that it loads is known, so it cannot be made as one.
    """
    generator.__class__ = MoxinResponseGenerator
    generator.adopt_work()
