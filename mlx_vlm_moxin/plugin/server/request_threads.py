"""Where mlx-vlm's endpoints wait for the tokens of their answers.

They wait in threads, one for each running request. asyncio has at most 32, on small machines fewer;
with more requests, those that wait for their first token would keep back tokens that are ready for
others. Once an answer has begun, it needs no thread here: the event loop is woken for the tokens of
a step.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar
from weakref import WeakSet

from mlx_vlm_moxin.plugin.server.token_blocks import TokenBlocks

Result = TypeVar("Result")
# Requests that can be answered at the same time. A thread is started when it is needed.
MAX_THREADS = 512

_loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()


def provide() -> None:
    """Give the running event loop enough threads. Idempotent."""
    loop = asyncio.get_running_loop()
    if loop not in _loops:
        _loops.add(loop)
        loop.set_default_executor(ThreadPoolExecutor(MAX_THREADS, "request"))


async def read_next(tokens: Any, read: Callable[[], Result]) -> Result:
    """``read()``, which reads the next of ``tokens``, once it does not wait; or in a thread.

    If no token comes for a while, as in a long queue, ``read`` waits in a thread, with mlx-vlm's
    limit of the time.
    """
    if isinstance(tokens, TokenBlocks) and await tokens.arrive():
        return read()
    return await asyncio.to_thread(read)


def asyncio_of_endpoints(original: ModuleType) -> SimpleNamespace:
    """Replaces ``asyncio`` in mlx-vlm's endpoints, which wait for each token in a thread."""

    async def to_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tokens = None if args or kwargs else _tokens_read_by(function)
        if tokens is None:
            return await original.to_thread(function, *args, **kwargs)
        return await read_next(tokens, function)

    return SimpleNamespace(**{**vars(original), "to_thread": to_thread})


def _tokens_read_by(function: Callable[[], Any]) -> TokenBlocks | None:
    """The answer's tokens, if ``function`` is an endpoint's local one that reads the next."""
    for cell in getattr(function, "__closure__", None) or ():
        try:
            value = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        if isinstance(value, TokenBlocks):
            return value
    return None
