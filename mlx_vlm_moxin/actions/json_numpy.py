"""NumPy arrays in JSON, in the form of the PyPI package ``json-numpy``.

The clients of OpenVLA's servers use it: an array is ``{"__numpy__": base64 of its bytes,
"dtype": ..., "shape": [...]}``. This implementation is safe for untrusted data: it accepts no
object dtypes and no sizes that differ from the bytes, and reports errors in one sentence.
"""

import base64
import binascii
import json
import operator
from math import prod
from typing import Any

import numpy as np

_KINDS = "biuf"


def _encode(value: Any) -> dict[str, Any]:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    array = np.asarray(value)
    return {
        "__numpy__": base64.b64encode(array.tobytes()).decode("ascii"),
        "dtype": array.dtype.str,
        "shape": list(array.shape),
    }


def _decode(content: dict[str, Any]) -> Any:
    if "__numpy__" not in content:
        return content
    try:
        data = base64.b64decode(content["__numpy__"], validate=True)
        dtype = np.dtype(str(content["dtype"]))
        shape = [operator.index(size) for size in content["shape"]]
    except (binascii.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"an array in it is malformed ({type(error).__name__}: {error})"
        ) from error
    if dtype.kind not in _KINDS:
        raise ValueError(f"an array in it has dtype {dtype}; numbers and bools are read")
    if min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array in it has {len(data)} bytes, not those of {dtype} {shape}")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if shape else array[()]


def dumps(value: Any) -> str:
    """``value`` as JSON, which may contain arrays and NumPy scalars anywhere."""
    return json.dumps(value, default=_encode)


def loads(text: str | bytes) -> Any:
    """Parse the output of ``dumps`` or of the package ``json-numpy``; arrays are read-only views.

    Raises:
        ValueError: saying what is wrong.
    """
    try:
        return json.loads(text, object_hook=_decode)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
