"""``mx.compile`` for functions that may find, while they are traced, that they cannot go on."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .errors import UnsupportedError


def compile_graph(function: Callable, modules: Sequence[nn.Module]) -> Callable:
    """``function``, compiled, with the arrays of ``modules`` as inputs.

    Weights that are inputs may change between calls; captured ones may not. An exception must not
    leave a traced function, since MLX would leave its placeholders in ``modules``: it is raised
    after the trace.

    Args:
        function: of arrays, lists and tuples, to a non-empty list or tuple.
        modules: whose arrays it uses.
    """
    failures: list[Exception] = []

    def trace(*arguments: Any) -> Sequence[Any]:
        try:
            return function(*arguments)
        except Exception as error:
            failures.append(error.with_traceback(None))
            return []

    graph = mx.compile(trace, inputs=list(modules))

    def call(*arguments: Any) -> Sequence[Any]:
        result = graph(*arguments)
        if failures:
            raise failures.pop()
        if not result:
            raise UnsupportedError("a function that could not be traced before")
        return result

    return call
