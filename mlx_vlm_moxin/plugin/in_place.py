"""Changes a function object in place, since programs may already have imported its name.

``from mlx_vlm import load, stream_generate`` runs before the model and this package are loaded.
Such programs would not see another function under ``mlx_vlm.stream_generate``, so the function
object itself gets other code.
"""

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any


def replace_code(
    function: FunctionType, make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> FunctionType:
    """Give ``function`` the behaviour of another one.

    Args:
        function: a function without a closure.
        make: receives a copy of ``function`` and returns its replacement, which is called with
            the same arguments.

    Returns:
        ``function`` itself, changed.
    """
    signature = inspect.signature(function)
    original = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )
    original.__kwdefaults__ = function.__kwdefaults__
    call = make(original)
    function.__code__ = _entry.__code__
    function.__defaults__ = None
    function.__kwdefaults__ = {"_call": call}
    function.__signature__ = signature
    return function


def change_argument(
    function: FunctionType, parameter: str, change: Callable[[Any], Any], processor: type
) -> FunctionType:
    """Make ``function`` receive ``change(argument)`` instead of one of its arguments.

    Args:
        function: a function without a closure, with a parameter ``processor``.
        parameter: name of the argument.
        change: called with the argument if the caller passes it.
        processor: class of the processors for whose calls the argument is changed.

    Returns:
        ``function`` itself, changed.

    Raises:
        LookupError: if ``function`` has no such parameters.
    """
    signature = inspect.signature(function)
    for name in (parameter, "processor"):
        if name not in signature.parameters:
            raise LookupError(f"{function.__qualname__} has no parameter {name}")

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            if parameter in bound.arguments and isinstance(bound.arguments["processor"], processor):
                bound.arguments[parameter] = change(bound.arguments[parameter])
            return original(*bound.args, **bound.kwargs)

        return call

    return replace_code(function, make)


def _entry(*args: Any, _call: Callable, **kwargs: Any) -> Any:
    return _call(*args, **kwargs)
