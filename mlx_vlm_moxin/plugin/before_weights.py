"""Checks after mlx-vlm has built Moxin, before it reads the weights."""

import functools
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx_vlm.models.moxin import Model

from mlx_vlm_moxin.plugin import chat_commands, command_options


def load_model_weights(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """``mlx_vlm.utils.load_model_weights``, after checks of options and memory."""

    @functools.wraps(original)
    def load(model: nn.Module, config: dict, weights: dict[str, mx.array], *args, **kwargs):
        if isinstance(model, Model):
            # Imported here: the library imports the model, whose import imports this module.
            from mlx_vlm_moxin.library import memory

            chat_commands.install()
            command_options.check(model, config.get("quantization"))
            nbytes = sum(value.nbytes for value in weights.values())
            memory.warn_if_too_large(nbytes, model.config)
        return original(model, config, weights, *args, **kwargs)

    return load
