"""Suppresses output that native libraries write to standard error, bypassing ``sys.stderr``."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
# The descriptor belongs to the whole process, so only one block at a time may replace it.
_exchanging = threading.Lock()


@contextmanager
def native_errors_dropped() -> Iterator[None]:
    """Buffer what is written to standard error, and drop it if the block raises.

    A panic in the tokenizers library prints its message (with ``RUST_BACKTRACE``, a hundred lines)
    before it becomes an exception with the same message.
    """
    with _exchanging, tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        try:
            saved = os.dup(_STDERR)
        except OSError:
            # This process has no standard error.
            yield
            return
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        except BaseException:
            held.truncate(0)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, _STDERR)
            os.close(saved)
            held.seek(0)
            os.write(_STDERR, held.read())
