"""Tokens of a stream that are sent together.

Sending one costs the event loop about half a millisecond of Python, in which the generation thread
waits. With many clients that would take longer than computing the tokens.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from queue import Queue
from typing import Any

from mlx_vlm.server.generation import StreamingToken

from mlx_vlm_moxin.plugin.server.client import count_requests

# Seconds between two blocks of a stream, for each running request: at most half of the event loop's
# time is spent on sending.
INTERVAL_PER_REQUEST = 0.001


class TokenBlocks:
    """The tokens of an answer; those that wait at the same time are one ``StreamingToken``.

    Args:
        tokens: the answer's tokens, read from ``queue``.
        queue: what they are read from.
    """

    def __init__(self, tokens: Any, queue: Queue):
        self._tokens = tokens
        self._queue = queue
        self._not_before = 0.0

    def __iter__(self) -> Iterator[StreamingToken]:
        return self

    def __next__(self) -> StreamingToken:
        pause = self._not_before - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        block = [next(self._tokens)]
        while not block[-1].finish_reason and self._has_token():
            block.append(next(self._tokens))
        self._not_before = time.monotonic() + INTERVAL_PER_REQUEST * (count_requests() - 1)
        return joined(block)

    def _has_token(self) -> bool:
        """Whether a token waits, and not the end or an error. Nothing else reads the queue."""
        return not self._queue.empty() and isinstance(self._queue.queue[0], StreamingToken)

    def close(self) -> None:
        """End the request if it is still running."""
        self._tokens.close()


def joined(tokens: Sequence[StreamingToken]) -> StreamingToken:
    """One ``StreamingToken`` with the text of all, as mlx-vlm's diffusion models send blocks."""
    if len(tokens) == 1:
        return tokens[0]
    return replace(
        tokens[-1],
        text="".join(token.text for token in tokens),
        token_count=sum(token.token_count for token in tokens),
    )
