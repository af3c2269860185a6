"""Refuses anything but regular files: reading a FIFO or a device may never end."""

from pathlib import Path


def check_regular(path: Path) -> None:
    """Refuse a path that exists but is not a regular file.

    Raises:
        FileNotFoundError: if nothing exists at ``path``.
        ValueError: if it is something else, such as a directory, a FIFO or a device.
    """
    if not path.is_file():
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing")
        raise ValueError(f"{path} is not a regular file; put a copy of the file in its place")
