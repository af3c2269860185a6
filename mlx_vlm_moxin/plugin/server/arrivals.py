"""Wakes those that wait for tokens after a step: the event loop, once for all answers.

mlx-vlm's endpoints wait for each token in a thread. Handing one over then costs the generation
thread a wake-up of that thread, and the event loop another, each of which passes Python's lock on.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from threading import Event

# Seconds after which a wait ends without an arrival.
LONGEST_WAIT = 1.0

_waiting: dict[asyncio.Future[None] | Event, Callable[[], bool]] = {}


async def wait_until(has_arrived: Callable[[], bool]) -> bool:
    """Wait on the event loop for something that the generation thread announces.

    Args:
        has_arrived: whether it is there; called in any thread.

    Returns:
        Whether it is there; false after ``LONGEST_WAIT``.
    """
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    timeout = loop.call_later(LONGEST_WAIT, _wake, [future])
    # Before the check, so that what arrives between the check and the wait is announced.
    _waiting[future] = has_arrived
    try:
        if not has_arrived():
            await future
    finally:
        _waiting.pop(future, None)
        timeout.cancel()
    return has_arrived()


def wait_in_thread(has_arrived: Callable[[], bool]) -> None:
    """The same in a thread, without the event loop."""
    event = Event()
    _waiting[event] = has_arrived
    try:
        if not has_arrived():
            event.wait(LONGEST_WAIT)
    finally:
        _waiting.pop(event, None)


def announce() -> None:
    """Wake all for whom something has arrived; called by the generation thread after a step."""
    arrived: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = defaultdict(list)
    for waiting, has_arrived in _waiting.copy().items():
        if not has_arrived():
            continue
        _waiting.pop(waiting, None)
        if isinstance(waiting, Event):
            waiting.set()
        else:
            arrived[waiting.get_loop()].append(waiting)
    for loop, futures in arrived.items():
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(_wake, futures)


def _wake(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
