"""The body of a request as JSON that the endpoints can work with.

Values that Python's parser accepts but JSON, UTF-8 or the endpoints do not are refused here,
naming their place: NaN and infinity, numbers of more than 64 bits, half surrogate pairs, deep
nesting. An explicit ``null``, which official clients send for unset fields, is removed.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from mlx_vlm_moxin.plugin.server.errors import BadRequestError

MAX_DEPTH = 64
_INT64 = 2**63
# Their content is the client's data, in which a null may have a meaning.
_OPAQUE = ("response_format", "text", "tools", "functions", "metadata", "logit_bias")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``.

    Raises:
        BadRequestError: naming the other type, or the value that cannot be used.
    """
    try:
        value = json.loads(body)
    except UnicodeDecodeError as error:
        raise BadRequestError("The body of the request is not JSON: it is no UTF-8") from error
    except RecursionError as error:
        raise BadRequestError(_too_deep()) from error
    except ValueError as error:
        raise BadRequestError(f"The body of the request is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequestError("The body of the request is not a JSON object")
    for path, item in _walk(value):
        _check(path, item)
    return value


def _too_deep() -> str:
    return f"The body of the request is nested more than {MAX_DEPTH} deep"


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value below ``value`` with its path, without recursion.

    Raises:
        BadRequestError: if ``value`` is nested too deep.
    """
    todo = [("", value, 0)]
    while todo:
        path, item, depth = todo.pop()
        yield path, item
        if depth > MAX_DEPTH:
            raise BadRequestError(_too_deep())
        if isinstance(item, dict):
            for key, child in item.items():
                place = f"{path}.{key[:40]}" if path else key[:40]
                yield "a name", key
                todo.append((place, child, depth + 1))
        elif isinstance(item, list):
            todo.extend((f"{path}.{i}", child, depth + 1) for i, child in enumerate(item))


def _check(path: str, value: Any) -> None:
    if isinstance(value, str):
        if not value.isascii() and not _is_utf8(value):
            raise BadRequestError(f"{path} holds half of a surrogate pair, which is no character")
        name = path.rpartition(".")[2]
        if "\0" in value and name in ("model", "adapter_path"):
            raise BadRequestError(f"{path} holds a null character")
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadRequestError(f"{path}={value!r} cannot be used: it must be a finite number")
    elif isinstance(value, int) and not -_INT64 <= value < _INT64:
        raise BadRequestError(f"{path} cannot be used: it has more than 64 bits")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_nulls(value: Any) -> Any:
    """``value`` without the entries of its objects that are null, ``_OPAQUE`` ones as is."""
    if isinstance(value, dict):
        return {
            key: child if key in _OPAQUE else without_nulls(child)
            for key, child in value.items()
            if child is not None
        }
    if isinstance(value, list):
        return [without_nulls(child) for child in value]
    return value


def text_length(value: Any) -> int:
    """Characters of all strings below ``value``."""
    return sum(len(item) for path, item in _walk(value) if isinstance(item, str))
