"""How sizes and errors read on the screen."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rich.filesize import decimal

MAX_MESSAGE = 600
# Longer than any path or tensor name that somebody has to recognise.
_MAX_WORD = 200

# In decimal units, as file managers and the Hub show sizes.
format_size = partial(decimal, precision=2)


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def one_line(error: BaseException | str) -> str:
    """A text on one printable line of at most :data:`MAX_MESSAGE` characters.

    Args:
        error: an exception or a text, which may repeat what a file holds. An exception
            without text gives the name of its type.
    """
    # A file may have put megabytes there; only the first part is worth splitting.
    words = str(error)[: 100 * MAX_MESSAGE].split() or [type(error).__name__]
    text = " ".join(_shorten(word, _MAX_WORD) for word in words)
    return _shorten("".join(c if c.isprintable() else "?" for c in text), MAX_MESSAGE)


@contextmanager
def bounded_errors() -> Iterator[None]:
    """Cut the messages of errors about files to one line of bounded length.

    Raises:
        OSError, ValueError: of the same type, with :func:`one_line` as message.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        text = str(error)
        if len(text) > MAX_MESSAGE or not text.isprintable():
            raise type(error)(one_line(text)) from error
        raise
