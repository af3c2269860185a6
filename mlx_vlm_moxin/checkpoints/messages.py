"""Formats sizes, tables and errors for the screen."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

MAX_MESSAGE = 600
# Longer than any path or tensor name that a reader must recognise.
_MAX_WORD = 200
# Columns of a table that is not printed to a terminal.
_FILE_WIDTH = 140

# Decimal units, like file managers and the Hub.
format_size = partial(decimal, precision=2)


def print_table(table: Table) -> None:
    """Print a table; to a file or a pipe without rich's line breaks at column 80."""
    # A file name may contain what looks like rich markup.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    console.print(table)


def _shorten(text: str, limit: int) -> str:
    """``text`` cut to ``limit`` in the middle, since its end says what to do."""
    end = limit // 3
    return text if len(text) <= limit else f"{text[: limit - end - 3]}...{text[-end:]}"


def one_line(error: BaseException | str, limit: int = MAX_MESSAGE) -> str:
    """Reduce a text to one printable line of at most ``limit`` characters.

    Args:
        error: an exception or a text, which may quote the contents of a file. An exception
            without text gives the name of its type.
    """
    # The text may contain megabytes from a file; only split its first part.
    words = str(error)[: 100 * MAX_MESSAGE].split() or [type(error).__name__]
    text = " ".join(_shorten(word, _MAX_WORD) for word in words)
    return _shorten("".join(c if c.isprintable() else "?" for c in text), limit)


@contextmanager
def bounded_errors() -> Iterator[None]:
    """Shorten messages of errors about files to one line of bounded length.

    Raises:
        OSError, ValueError: of the same type, with the message from ``one_line``.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        text = str(error)
        if len(text) > MAX_MESSAGE or not text.isprintable():
            raise type(error)(one_line(text)) from error
        raise


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, then its cause or context, and so on down the chain."""
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
