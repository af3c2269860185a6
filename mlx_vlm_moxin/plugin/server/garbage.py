"""Collecting garbage, which mlx-vlm does after each answer that is not streamed.

All threads wait for it: 0.1 s for the objects of all imported modules, and some milliseconds for
those of running requests.
"""

import gc
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

# Seconds between two collections.
INTERVAL = 1.0


def exempt_imports() -> None:
    """Exempt what exists now from collection: the imported modules, but no model yet.

    A model is loaded later, and what it leaves when it is unloaded has to be collected.
    """
    gc.collect()
    gc.freeze()


def gc_of_endpoints(original: ModuleType) -> SimpleNamespace:
    """Replaces ``gc`` in mlx-vlm's endpoints: collects only every ``INTERVAL``."""
    return SimpleNamespace(**{**vars(original), "collect": _at_intervals(original.collect)})


def _at_intervals(collect: Callable[[], int]) -> Callable[[], int]:
    last = -INTERVAL

    def collect_at_intervals() -> int:
        nonlocal last
        now = time.monotonic()
        if now - last < INTERVAL:
            return 0
        last = now
        return collect()

    return collect_at_intervals
