"""What happens after mlx-vlm has built Moxin and before it reads the weights."""

import functools
import sys
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx_vlm.models.moxin import Model

from mlx_vlm_moxin.plugin import chat_commands, command_options


def load_model_weights(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """``mlx_vlm.utils.load_model_weights``, after checks of options and memory; reads faster."""

    @functools.wraps(original)
    def load(model: nn.Module, config: dict, weights: dict[str, mx.array], *args, **kwargs):
        if not isinstance(model, Model):
            return original(model, config, weights, *args, **kwargs)
        # Imported here: the library imports the model, whose import imports this module.
        from mlx_vlm_moxin.library import memory, read_buffers

        chat_commands.install()
        command_options.check(model, config.get("quantization"))
        nbytes = sum(value.nbytes for value in weights.values())
        memory.warn_if_too_large(nbytes, model.config)
        if "mlx_vlm.server" in sys.modules:
            from mlx_vlm_moxin.plugin.server import first_use

            first_use.compile_for(weights)
        with read_buffers.kept():
            return original(model, config, weights, *args, **kwargs)

    return load
