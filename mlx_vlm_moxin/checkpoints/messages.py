"""How sizes and errors read on the screen."""

from functools import partial

from rich.filesize import decimal

MAX_MESSAGE = 500

# In decimal units, as file managers and the Hub show sizes.
format_size = partial(decimal, precision=2)


def one_line(error: BaseException | str) -> str:
    """An error's text on one line of at most :data:`MAX_MESSAGE` characters.

    Args:
        error: an exception, or a text that may hold what a file says; an exception without
            text gives the name of its type.
    """
    # Only the first part is worth splitting into words: a file may have put megabytes there.
    text = " ".join(str(error)[: 20 * MAX_MESSAGE].split()) or type(error).__name__
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 4]} ..."
