"""Engines of modules, kept outside the module tree.

So a copy of a module gets a new engine, which computes with the copy's weights, and an engine is
freed together with its module.
"""

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

import mlx.nn as nn

E = TypeVar("E")


class EngineTable(Generic[E]):
    """The engine of each existing module: an accelerated pass with its state between calls.

    An engine must not refer to the module, which would then never be freed. It may refer to the
    module's parts.
    """

    def __init__(self):
        # By id, because modules are dictionaries and have no hash.
        self._entries: dict[int, tuple[weakref.ref[nn.Module], E]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, module: nn.Module) -> E | None:
        """The engine of ``module``; None if it has none."""
        reference, engine = self._entries.get(id(module), (None, None))
        return engine if reference is not None and reference() is module else None

    def find(self, module: nn.Module, is_current: Callable[[E], bool], make: Callable[[], E]) -> E:
        """The engine of ``module``.

        Args:
            is_current: whether the engine's parts are still the module's.
            make: builds the engine at the first call and when the parts were replaced.
        """
        engine = self.get(module)
        if engine is None or not is_current(engine):
            key, entries, engine = id(module), self._entries, make()
            entries[key] = weakref.ref(module, lambda _: entries.pop(key, None)), engine
        return engine
