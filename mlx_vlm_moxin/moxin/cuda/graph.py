"""``mx.compile`` for functions that may find, while they are traced, that they cannot go on."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .errors import UnsupportedError


def compile_graph(function: Callable, modules: list[nn.Module]) -> Callable:
    """``function``, compiled, with the arrays of ``modules`` as inputs.

    Weights that are inputs may change between calls; captured ones may not. An exception must not
    leave a traced function, since MLX would leave its placeholders in ``modules``: it is raised
    after the trace. MLX also replaces the arrays of ``modules`` by other Python objects of the same
    values, so they are put back: joined weights are known by their objects.

    Args:
        function: of arrays, lists and tuples, to a non-empty list or tuple.
        modules: whose arrays it uses; a list, which may have others at each call.
    """
    failures: list[Exception] = []

    def trace(*arguments: Any) -> Sequence[Any]:
        try:
            return function(*arguments)
        except Exception as error:
            failures.append(error.with_traceback(None))
            return []

    graph = mx.compile(trace, inputs=modules)
    is_traced = False

    def call(*arguments: Any) -> Sequence[Any]:
        nonlocal is_traced
        before = [] if is_traced else _arrays(modules)
        result = graph(*arguments)
        is_traced = True
        for module, name, array in before:
            module[name] = array
        if failures:
            raise failures.pop()
        if not result:
            raise UnsupportedError("a function that could not be traced before")
        return result

    return call


def _arrays(modules: Sequence[nn.Module]) -> list[tuple[nn.Module, str, mx.array]]:
    """All arrays of ``modules``, each with the module that holds it and its name there."""
    return [
        (module, name, value)
        for root in modules
        for module in root.modules()
        for name, value in module.items()
        if isinstance(value, mx.array)
    ]


def step_graphs(
    step: Callable, decoder: nn.Module, head: nn.Module, count: int
) -> Callable[[Any, Hashable], Callable]:
    """The compiled graphs of ``step``, one for given sizes and caches.

    Tracing one takes longer than computing it, and on a server the caches change their shape
    whenever a request begins or ends. MLX would keep all graphs.

    Args:
        step: of ``decoder``, ``head``, its sizes, and then the arrays of a pass.
        decoder: a ``MistralModel``.
        head: the output head.
        count: number of graphs that are kept, the last ones used.

    Returns:
        A function of the decoder's sizes and of the shape or capacity of its caches.
    """

    @functools.lru_cache(maxsize=count)
    def find(sizes: Any, caches: Hashable) -> Callable:
        return compile_graph(functools.partial(step, decoder, head, sizes), [decoder, head])

    return find
