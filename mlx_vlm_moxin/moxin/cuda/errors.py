"""The error that leaves a pass to the modules."""


class UnsupportedError(Exception):
    """The kernels do not compute what the modules compute."""


def require(condition: bool, reason: str) -> None:
    """Raise ``UnsupportedError`` with ``reason`` unless ``condition``."""
    if not condition:
        raise UnsupportedError(reason)
