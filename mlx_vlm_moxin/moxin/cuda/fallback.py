"""When a function of the kernels leaves the work to the modules."""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from . import device
from .errors import UnsupportedError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def or_none(instead: str) -> Callable[[Callable[..., Result]], Callable[..., Result | None]]:
    """A decorator: None where kernels are off, or do not support or cannot compute something.

    Args:
        instead: what happens then, for the log; such as ``MLX computes the towers``.
    """

    def decorate(compute: Callable[..., Result]) -> Callable[..., Result | None]:
        @functools.wraps(compute)
        def call(*args: Any, **kwargs: Any) -> Result | None:
            if not device.enabled():
                return None
            try:
                return compute(*args, **kwargs)
            except UnsupportedError as error:
                logger.debug("%s: %s", instead, error)
            except RuntimeError as error:
                device.disable_after(error)
            return None

        return call

    return decorate
