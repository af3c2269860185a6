"""At most one kernel with a grid barrier at a time in this process."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import mlx.core as mx


class _Turns:
    """Contexts in which kernels with a grid barrier are launched.

    Two of them at once could each wait for multiprocessors that the other occupies. Launches in one
    stream run in order; before one in another stream, this waits for the last one.
    """

    def __init__(self):
        self._lock = threading.RLock()
        self._stream: mx.Stream | None = None
        self._last: mx.array | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Callable[[mx.array], None]]:
        """A context for launches; call the yielded function with an output of the kernel."""
        stream = mx.default_stream(mx.default_device())

        def launched(output: mx.array) -> None:
            self._stream, self._last = stream, output

        with self._lock:
            if self._last is not None and self._stream != stream:
                mx.eval(self._last)
            yield launched


turn = _Turns()
