"""Other work with the model while answers are generated, such as a robot's action.

Only the generation thread may use the model. It checks for new requests before each step of the
running answers; one piece of other work is done there too.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from mlx_vlm.server.generation import ResponseGenerator

Result = TypeVar("Result")
# Interval in seconds at which a waiting request checks the generation thread and its client.
WATCH_INTERVAL = 0.5


class StoppingError(RuntimeError):
    """The generation thread has ended, because the model is being unloaded."""


class WorkBetweenSteps(ResponseGenerator):
    """A generator whose thread does other work between the steps of its answers."""

    # Set by adopt_work: a running generator is changed to this class without calling __init__.
    _work: deque[tuple[Callable, Future]]

    def adopt_work(self) -> None:
        """Set up a running generator that was changed to this class. Idempotent."""
        self.__dict__.setdefault("_work", deque())

    async def between_steps(
        self, work: Callable[[], Result], is_gone: Callable[[], Awaitable[bool]]
    ) -> Result | None:
        """Run ``work`` in the generation thread, and wait for it without holding a thread.

        One piece of work runs after each step of the running answers, in the order of the
        requests, so neither waits for the other to finish.

        Args:
            work: the function to call.
            is_gone: whether nobody waits for the result any more. Work that has not started by then
                is dropped.

        Returns:
            The result; None if nobody waits for it.

        Raises:
            StoppingError: if the thread ends before it gets there.
        """
        future: Future[Result] = Future()
        self._work.append((work, future))
        self.requests.put(None)  # wakes a thread that waits for requests
        result = asyncio.wrap_future(future)
        try:
            while not (await asyncio.wait({result}, timeout=WATCH_INTERVAL))[0]:
                if not self._thread.is_alive():
                    raise StoppingError("The model is being unloaded; send the request again")
                if await is_gone():
                    return None
            return result.result()
        finally:
            result.cancel()  # which also drops the work, unless it runs or is done

    def _collect_pending_requests(self, *, active: bool, **kwargs: Any) -> tuple[list[Any], bool]:
        """New requests for the batch; called by the generation thread before each step."""
        # With work to do, the thread does not wait for requests.
        pending = super()._collect_pending_requests(active=active or bool(self._work), **kwargs)
        self._do_next()
        return pending

    def _do_next(self) -> None:
        """Do the first piece of work whose client still waits, if any."""
        while self._work:
            work, future = self._work.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)
            return
