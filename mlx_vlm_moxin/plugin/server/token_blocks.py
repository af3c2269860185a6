"""Tokens that are read together: those of a stream that wait, and those of a whole answer.

Sending a chunk costs the event loop Python, in which the generation thread waits. With many clients
a chunk for each token would take longer than computing the tokens.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from queue import Queue
from typing import Any

from mlx_vlm.server.generation import StreamingToken

from mlx_vlm_moxin.plugin.server import arrivals
from mlx_vlm_moxin.plugin.server.client import count_requests

# Seconds between two blocks of a stream, for each running request, which limits the event loop's
# work to about a thousand blocks a second.
INTERVAL_PER_REQUEST = 0.001


class TokenBlocks:
    """The tokens of an answer; those that wait at the same time are one ``StreamingToken``.

    Args:
        tokens: the answer's tokens, read from ``queue``.
        queue: what they are read from.
        are_joined: otherwise they are given out one by one, without a pause, as for
            log-probabilities.
    """

    def __init__(self, tokens: Any, queue: Queue, are_joined: bool = True):
        self._tokens = tokens
        self._are_joined = are_joined
        self._queue = queue
        self._not_before = 0.0
        self._ended = False

    def __iter__(self) -> Iterator[StreamingToken]:
        return self

    def __next__(self) -> StreamingToken:
        pause = self._not_before - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        try:
            block = [next(self._tokens)]
        except BaseException:
            self._ended = True
            raise
        while self._are_joined and not block[-1].finish_reason and self._has_token():
            block.append(next(self._tokens))
        self._ended = bool(block[-1].finish_reason)
        if self._are_joined:
            self._not_before = time.monotonic() + INTERVAL_PER_REQUEST * (count_requests() - 1)
        return joined(block)

    async def arrive(self) -> bool:
        """Wait without a thread until the next block can be read.

        Returns:
            Whether it can be read without waiting. If not, no token has come for a while.
        """
        if not await arrivals.wait_until(self._is_due):
            return False
        self._not_before = 0.0
        return True

    def _is_due(self) -> bool:
        """Whether tokens wait that may be sent now. The last ones of an answer always may."""
        if self._ended or not self._queue.queue:
            return self._ended
        return has_end(self._queue) or time.monotonic() >= self._not_before

    def _has_token(self) -> bool:
        """Whether a token waits, and not the end or an error. Nothing else reads the queue."""
        return not self._queue.empty() and isinstance(self._queue.queue[0], StreamingToken)

    def close(self) -> None:
        """End the request if it is still running."""
        self._tokens.close()


class WholeAnswer:
    """The tokens of an answer that is not streamed, waited for together but given out one by one.

    mlx-vlm counts them. Waiting for each would wake a thread for each token.

    Args:
        tokens: the answer's tokens, read from ``queue``.
        queue: what they are read from.
    """

    def __init__(self, tokens: Any, queue: Queue):
        self._tokens = tokens
        self._queue = queue

    def __iter__(self) -> Iterator[StreamingToken]:
        return self

    def __next__(self) -> StreamingToken:
        if not self._queue.queue:
            arrivals.wait_in_thread(lambda: has_end(self._queue))
        # If the end has not come for a while, what has come is read, with mlx-vlm's limit of time.
        return next(self._tokens)

    def close(self) -> None:
        """End the request if it is still running."""
        self._tokens.close()


def has_end(queue: Queue) -> bool:
    """Whether the end of an answer, or an error, waits in its queue."""
    try:
        last = queue.queue[-1]
    except IndexError:  # empty, perhaps only now: it is read in another thread
        return False
    return not isinstance(last, StreamingToken) or bool(last.finish_reason)


def joined(tokens: Sequence[StreamingToken]) -> StreamingToken:
    """One ``StreamingToken`` with the text of all, as mlx-vlm's diffusion models send blocks."""
    if len(tokens) == 1:
        return tokens[0]
    return replace(
        tokens[-1],
        text="".join(token.text for token in tokens),
        token_count=sum(token.token_count for token in tokens),
    )
