"""Threads in which mlx-vlm's endpoints wait for the tokens of their answers.

Each running request holds one. asyncio has at most 32, on small machines fewer; with more requests,
those that wait for their first token would keep back tokens that are ready for others.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakSet

# Requests that can be answered at the same time. A thread is started when it is needed.
MAX_THREADS = 512

_loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()


def provide() -> None:
    """Give the running event loop enough threads. Idempotent."""
    loop = asyncio.get_running_loop()
    if loop not in _loops:
        _loops.add(loop)
        loop.set_default_executor(ThreadPoolExecutor(MAX_THREADS, "request"))
