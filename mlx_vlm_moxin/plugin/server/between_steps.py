"""Work with the model beside the answers under way, such as a robot's action.

Only the generation thread may use the model. It looks for new requests before each step of
the answers under way; one piece of work has its turn there.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import Any, TypeVar

from mlx_vlm.server.generation import ResponseGenerator

Result = TypeVar("Result")
# How often a caller looks whether the generation thread is still there, in seconds.
WATCH_INTERVAL = 1.0


class StoppingError(RuntimeError):
    """The generation thread has ended, since the model is being unloaded."""


class WorkBetweenSteps(ResponseGenerator):
    """A generator whose thread does other work between the steps of its answers."""

    # By generator, since a running one is given this class: its __init__ is over.
    _work: deque[tuple[Callable, Future]]

    def adopt_work(self) -> None:
        """To be called once the running generator has this class. Idempotent."""
        self.__dict__.setdefault("_work", deque())

    def between_steps(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in the generation thread and wait for it.

        One piece of work runs after each step of the answers under way, in the order in which
        they came, so neither waits for the other to be finished.

        Raises:
            StoppingError: if the thread ends before it gets there.
        """
        future: Future[Result] = Future()
        self._work.append((work, future))
        self.requests.put(None)  # wakes a thread that waits for requests
        while True:
            try:
                return future.result(timeout=WATCH_INTERVAL)
            except NotYet:
                if future.done():
                    raise  # the work's own
                if not self._thread.is_alive():
                    message = "The model is being unloaded; send the request again"
                    raise StoppingError(message) from None

    def _collect_pending_requests(self, *, active: bool, **kwargs: Any) -> tuple[list[Any], bool]:
        """New requests for the batch; called by the generation thread before each step."""
        # With work to do, the thread does not wait for requests.
        pending = super()._collect_pending_requests(active=active or bool(self._work), **kwargs)
        if self._work:
            work, future = self._work.popleft()
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)
        return pending
