"""Applies the rows of ``upstream.UPSTREAM``.

This is the only place that assigns to a module of another package. Rows of a module that is not
yet imported are applied when it is, so the order of imports does not matter. A missing name ends
the import with one ``RuntimeError`` that names it.
"""

import importlib
import sys
from collections.abc import Iterable
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.specifiers import SpecifierSet

from mlx_vlm_moxin import __version__
from mlx_vlm_moxin.plugin.after_import import after_import
from mlx_vlm_moxin.plugin.upstream import UPSTREAM, Replacement

# Applied rows, by their place in other packages.
_applied: set[tuple[str, str]] = set()


def _installed(distribution: str) -> str:
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return f"{distribution} (not installed)"


def cannot_load(host: str, reason: str | Exception) -> RuntimeError:
    """The error for a version of another package that lacks a name that this package needs.

    Args:
        host: the other package's name on the index.
        reason: what is missing.

    Returns:
        A ``RuntimeError``: mlx-vlm reports an ImportError whose text contains the model type
        (a file path is enough) as "Model type moxin not supported", mlx-lm any ImportError.
    """
    others = [name for name in ("mlx-vlm", "mlx", "transformers") if name != host]
    return RuntimeError(
        f"mlx-vlm-moxin {__version__} cannot be loaded into "
        f"{', '.join(map(_installed, [host, *others]))}: {reason}"
    )


def _owner(row: Replacement) -> tuple[Any, str]:
    """The module or class with the name, and the last part of the name.

    Raises:
        RuntimeError: if the module or the name does not exist.
    """
    *path, name = row.name.split(".")
    try:
        owner = importlib.import_module(row.module)
        for part in path:
            owner = getattr(owner, part)
        getattr(owner, name)
    except (ImportError, AttributeError) as error:
        reason = f"{row.module} has no {row.name} ({row.why})"
        raise cannot_load(row.distribution, reason) from error
    return owner, name


# Each look-up reads the package's metadata file.
_version = cache(version)


def _is_needed(row: Replacement) -> bool:
    try:
        installed = _version(row.distribution)
    except PackageNotFoundError:
        return True  # a source tree on the path has no metadata
    return SpecifierSet(row.versions).contains(installed, prereleases=True)


def _replace(rows: Iterable[Replacement], settings: dict[str, Any]) -> None:
    """Look up every name first, so that a missing one leaves nothing partly replaced."""
    places = [(row, *_owner(row)) for row in rows if (row.module, row.name) not in _applied]
    for row, owner, name in places:
        if row.make is not None:
            module, _, function = row.make.partition(":")
            maker = getattr(importlib.import_module(f"{__package__}.{module}"), function)
            try:
                setattr(owner, name, maker(getattr(owner, name), **settings))
            except (AttributeError, LookupError) as error:
                reason = f"{row.module}.{row.name} has changed: {error!r}"
                raise cannot_load(row.distribution, reason) from error
        _applied.add((row.module, row.name))


def apply(when: str, **settings: Any) -> None:
    """Apply the rows of one occasion, each once its module is imported. Idempotent.

    Args:
        when: ``upstream.MODEL``, ``DECODER`` or ``COMMAND``.
        settings: further arguments for the functions in ``make``.

    Raises:
        RuntimeError: naming the package, its version and the name that it lacks. For a
            module that is imported later, the import raises it.
    """
    groups: dict[str, list[Replacement]] = {}
    for row in UPSTREAM:
        if row.when == when and _is_needed(row):
            groups.setdefault(row.after or row.module, []).append(row)
    # In already imported modules, every name is looked up before any is replaced.
    imported = [row for module, rows in groups.items() if module in sys.modules for row in rows]
    _replace(imported, settings)
    for module, rows in groups.items():
        if module not in sys.modules:
            after_import(module, partial(_replace, rows, settings))
