"""Turns signals that end the process into an exception, so that partial output is removed."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The process received a signal to end."""


def _stop(number: int, frame: object) -> NoReturn:
    # A second signal ends the process immediately, in case cleaning up takes too long.
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise Stopped


@contextmanager
def stoppable() -> Iterator[None]:
    """Make signals raise ``Stopped`` within the block; for the main thread of a command."""
    handlers = {number: signal.signal(number, _stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
