"""How sizes, tables and errors read on the screen."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

MAX_MESSAGE = 600
# Longer than any path or tensor name that somebody has to recognise.
_MAX_WORD = 200
# Columns for a table that is not printed on a terminal.
_FILE_WIDTH = 140

# In decimal units, as file managers and the Hub show sizes.
format_size = partial(decimal, precision=2)


def print_table(table: Table) -> None:
    """Print a table; in a file or a pipe, where rich would break lines at 80, in one piece."""
    # A file's name may look like rich's markup.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    console.print(table)


def _shorten(text: str, limit: int) -> str:
    """``text``, its middle left out where it is longer: it ends with what to do."""
    end = limit // 3
    return text if len(text) <= limit else f"{text[: limit - end - 3]}...{text[-end:]}"


def one_line(error: BaseException | str, limit: int = MAX_MESSAGE) -> str:
    """A text on one printable line of at most ``limit`` characters.

    Args:
        error: an exception or a text, which may repeat what a file holds. An exception
            without text gives the name of its type.
    """
    # A file may have put megabytes there; only the first part is worth splitting.
    words = str(error)[: 100 * MAX_MESSAGE].split() or [type(error).__name__]
    text = " ".join(_shorten(word, _MAX_WORD) for word in words)
    return _shorten("".join(c if c.isprintable() else "?" for c in text), limit)


@contextmanager
def bounded_errors() -> Iterator[None]:
    """Cut the messages of errors about files to one line of bounded length.

    Raises:
        OSError, ValueError: of the same type, with ``one_line`` as message.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        text = str(error)
        if len(text) > MAX_MESSAGE or not text.isprintable():
            raise type(error)(one_line(text)) from error
        raise


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, then the one that it was raised from or while handling, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def print_error(error: BaseException) -> int:
    """Print an error that ends a command as one line on standard error.

    Returns:
        The exit status, 1.

    Raises:
        BaseException: the error itself if ``MLX_VLM_MOXIN_TRACEBACK`` is set.
    """
    if os.environ.get("MLX_VLM_MOXIN_TRACEBACK"):
        raise error
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 1
