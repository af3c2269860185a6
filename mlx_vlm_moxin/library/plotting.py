"""Plots are optional; a missing matplotlib is found before a long run, not at its end."""

from importlib.util import find_spec
from pathlib import Path


def check_plotting(what: str) -> None:
    """Find out before a long run that its plot cannot be drawn.

    Args:
        what: the name of the plot, as the start of a sentence.

    Raises:
        ValueError: saying what to install.
    """
    if find_spec("matplotlib") is None:
        raise ValueError(f"{what} needs matplotlib; run pip install matplotlib")


def check_writable(path: Path | None) -> None:
    """Find out before a long run that its result cannot be written to ``path``.

    Raises:
        FileNotFoundError, IsADirectoryError: naming the folder that is missing or in the way.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} into")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
