"""Calls a function after a module has been imported, now or later."""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_callbacks: dict[str, list[Callable[[], None]]] = {}


class _AfterImportFinder:
    """Meta path finder that lets the others find a module and extends its loader."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _callbacks:
            return None
        finders = [finder for finder in sys.meta_path if finder is not cls]
        found = (finder.find_spec(fullname, path, target) for finder in finders)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        # Every spec gets a new loader, so this one is used for this module only.
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for callback in _callbacks.get(fullname, ()):
                callback()
            _callbacks.pop(fullname, None)

        spec.loader.exec_module = exec_module
        return spec


def after_import(module: str, callback: Callable[[], None]) -> None:
    """Call ``callback`` once ``module`` has been executed.

    An exception that it raises makes the import fail.

    Args:
        module: full name of a module that is not imported yet.
        callback: called without arguments, while the module's import lock is held.
    """
    if _AfterImportFinder not in sys.meta_path:
        sys.meta_path.insert(0, _AfterImportFinder)
    _callbacks.setdefault(module, []).append(callback)
