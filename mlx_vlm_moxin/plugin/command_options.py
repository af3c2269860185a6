"""Checks a command's options when it loads Moxin, before weights are read.

mlx-vlm's commands parse their options before any model is known, and keep the result in a local
variable of the function that loads the model. They are read there, so the checked values are the
ones that the command uses.
"""

import functools
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from types import FrameType
from typing import Any

import mlx.nn as nn
from mlx_vlm.models.moxin import Model

from mlx_vlm_moxin.checkpoints.messages import one_line


class OptionError(ValueError):
    """An option of a command cannot be used; the message names it and says why."""


def _module(frame: FrameType) -> str:
    """Full name of the module whose code runs in ``frame``, also under ``python -m``."""
    name = frame.f_globals.get("__name__", "")
    spec = frame.f_globals.get("__spec__")
    return spec.name if name == "__main__" and spec is not None else name


def running_command() -> tuple[str, Namespace] | None:
    """Module and parsed options of the mlx-vlm command that this process runs.

    Returns:
        None if there is none, as in a program that imports mlx-vlm.
    """
    # A server loads in another thread, while its main thread waits within the command.
    frame = sys._current_frames().get(threading.main_thread().ident)
    while frame is not None:
        module = _module(frame)
        if module.startswith("mlx_vlm."):
            for value in frame.f_locals.values():
                if isinstance(value, Namespace):
                    return module, value
        frame = frame.f_back
    return None


def check(model: nn.Module, quantization: dict[str, Any] | None) -> None:
    """Refuse the running command's options that cannot be used with ``model``.

    Args:
        model: Moxin, built; its weights are not used.
        quantization: config.json's.

    Raises:
        OptionError: naming the first such option, its value and what is allowed.
    """
    found = running_command()
    if found is None:
        return
    # Imported here: the rules import the library, which imports the model, which imports this.
    from mlx_vlm_moxin.plugin.option_rules import RULES
    from mlx_vlm_moxin.plugin.option_tables import Command, flag

    command = Command(*found, model, quantization)
    for rule in RULES:
        for name, reason in rule(command):
            value = command.get(name)
            given = flag(name) if value is True else f"{flag(name)} {_as_typed(value)}"
            raise OptionError(f"{given} cannot be used: {reason}" if name else reason)


def _as_typed(value: Any) -> str:
    values = value if isinstance(value, (list, tuple)) else [value]
    return one_line(" ".join(map(str, values)))


def prepare_generation_inputs(original: Callable[..., Any]) -> Callable[..., Any]:
    """``mlx_vlm.generate.dispatch._prepare_generation_inputs`` that keeps all visual tokens.

    A cache of limited size drops the oldest tokens except four, which are the picture's.
    """

    @functools.wraps(original)
    def prepare(model: nn.Module, processor: Any, *args: Any) -> Any:
        *_, settings = args
        size = settings.get("max_kv_size") if settings.get("prompt_cache") is None else None
        input_ids, pixel_values, *rest = original(model, processor, *args)
        if isinstance(model, Model) and size is not None and pixel_values is not None:
            length = input_ids.shape[1]
            if length > size:
                raise OptionError(
                    f"max_kv_size={size} is less than the {length} tokens of picture and prompt, "
                    "so part of the picture would be dropped"
                )
        return (input_ids, pixel_values, *rest)

    return prepare
