"""Only regular files are read: a FIFO or a device would never end, or never begin."""

from pathlib import Path


def check_regular(path: Path) -> None:
    """Refuse what is there but no file.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if there is something else, such as a directory, a FIFO or a device.
    """
    if not path.is_file():
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing")
        raise ValueError(f"{path} is not a regular file; put a copy of the file in its place")
