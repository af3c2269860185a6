"""Reads pickles of lists, dicts, strings and numbers without executing anything in them.

RefCOCO's expressions are published as pickles, and unpickling executes whatever a file contains.
This module checks every opcode first. It refuses opcodes that plain values do not need, that
name a class, or that could use more memory than the size of the file explains.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

# RefCOCO's largest file has about 60 MB.
MAX_BYTES = 256 << 20
_OPCODES = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT LONG LONG1 BININT BININT1 BININT2 FLOAT BINFLOAT
STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE
LIST EMPTY_LIST APPEND APPENDS DICT EMPTY_DICT SETITEM SETITEMS
TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
"""
_PLAIN_OPCODES = frozenset(_OPCODES.split())
_MEMO_WRITES = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
# Bits of an integer: Python converts long ones from text in quadratic time.
_MAX_DIGITS = 32


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every class, as a second barrier after the check of the opcodes."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise ValueError(f"the class {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ValueError("a persistent id")


def _check(data: bytes) -> None:
    """Raise ValueError at the first opcode that plain values do not need."""
    for opcode, argument, position in pickletools.genops(data):
        name = opcode.name
        if name not in _PLAIN_OPCODES:
            raise ValueError(f"the opcode {name} at byte {position}")
        if name in _MEMO_WRITES:
            # The memo is an array as long as its highest index; picklers use consecutive indices.
            if argument > position:
                raise ValueError(f"a memo index of {argument} at byte {position}")
        elif name in ("INT", "LONG") and abs(argument).bit_length() > 4 * _MAX_DIGITS:
            raise ValueError(f"a number of {argument.bit_length()} bits at byte {position}")
        elif name == "STOP" and position + 1 != len(data):
            raise ValueError(f"{len(data) - position - 1} bytes after its end")


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of plain values; Python 2's ``str`` becomes text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: one line that names what the file should not contain.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; a file of expressions has less than 256 MB")
    data = path.read_bytes()
    try:
        _check(data)
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    # Damaged and malicious pickles can raise any exception.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{path} is not a pickle of plain lists and dicts ({reason}); it was not read further. "
            "Download it again"
        ) from error
