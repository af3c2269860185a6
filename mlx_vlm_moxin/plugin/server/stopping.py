"""Ends an answer's tokens at stop strings, which mlx-vlm's server ignores."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mlx_vlm.server.generation import StreamingToken


class StoppingTokens:
    """The tokens of an answer up to the stop string that is complete first.

    If two are complete at the same time, the longer one is used. Text that may be the beginning
    of a stop string is held back until it is known.

    Args:
        tokens: the iterator that ``ResponseGenerator.generate`` returns.
        stop: strings, none empty.
        include_stop: include the stop string at the end of the text.
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
        """End the request if it is still running."""
        self._tokens.close()
