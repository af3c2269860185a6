"""What libraries in other languages write to standard error past Python's ``sys.stderr``."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
# The descriptor belongs to the whole process: one block at a time may exchange it.
_exchanging = threading.Lock()


@contextmanager
def native_errors_dropped() -> Iterator[None]:
    """Hold back what is written to standard error, and drop it if the block raises.

    A panic in the tokenizers library prints its message, and with ``RUST_BACKTRACE`` a hundred
    lines, before it becomes an exception that says the same.
    """
    with _exchanging, tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        try:
            saved = os.dup(_STDERR)
        except OSError:
            # The process has no standard error.
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
