"""Wakes the event loop for the tokens of a step, once for all answers.

mlx-vlm's endpoints wait for each token in a thread. Handing one over then costs the generation
thread a wake-up of that thread, and the event loop another, each of which passes Python's lock on.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

# Seconds after which a wait ends without an arrival.
LONGEST_WAIT = 1.0

_waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}


async def wait_until(has_arrived: Callable[[], bool]) -> bool:
    """Wait for something that the generation thread announces.

    Args:
        has_arrived: whether it is there; called in any thread.

    Returns:
        Whether it is there; false after ``LONGEST_WAIT``.
    """
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    timeout = loop.call_later(LONGEST_WAIT, _wake, [future])
    # First of all: what arrives between the check and the wait is announced.
    _waiting[future] = has_arrived
    try:
        if not has_arrived():
            await future
    finally:
        _waiting.pop(future, None)
        timeout.cancel()
    return has_arrived()


def announce() -> None:
    """Wake all for whom something has arrived; called by the generation thread after a step."""
    arrived: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = defaultdict(list)
    for future, has_arrived in _waiting.copy().items():
        if has_arrived():
            _waiting.pop(future, None)
            arrived[future.get_loop()].append(future)
    for loop, futures in arrived.items():
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(_wake, futures)


def _wake(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
