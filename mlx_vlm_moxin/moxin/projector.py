"""Projectors from vision to language, as in Prismatic's ``nn_utils.py``.

The attribute in the model is called ``multi_modal_projector``: that name keeps mlx-vlm's
converter from quantising it. GELU is the exact one.
"""

import mlx.core as mx
import mlx.nn as nn

from .vision_config import ProjectorConfig


class Projector(nn.Module):
    """A projector's activation function."""

    def gelu(self, x: mx.array) -> mx.array:
        """The exact GELU. A plug-in may replace this method of the class."""
        return nn.gelu(x)


class LinearProjector(nn.Module):
    """``fc1(x)`` (``linear``)."""

    def __init__(self, config: ProjectorConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.input_size, config.output_size)

    def __call__(self, x: mx.array) -> mx.array:
        """``[B, N, input_size] -> [B, N, output_size]``."""
        return self.fc1(x)


class MLPProjector(Projector):
    """``fc2(gelu(fc1(x)))`` (``gelu-mlp``)."""

    def __init__(self, config: ProjectorConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.input_size, config.output_size)
        self.fc2 = nn.Linear(config.output_size, config.output_size)

    def __call__(self, x: mx.array) -> mx.array:
        """``[B, N, input_size] -> [B, N, output_size]``."""
        return self.fc2(self.gelu(self.fc1(x)))


class FusedMLPProjector(Projector):
    """``fc3(gelu(fc2(gelu(fc1(x)))))`` (``fused-gelu-mlp``), for two towers."""

    def __init__(self, config: ProjectorConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.input_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.output_size)
        self.fc3 = nn.Linear(config.output_size, config.output_size)

    def __call__(self, x: mx.array) -> mx.array:
        """``[B, N, input_size] -> [B, N, output_size]``."""
        return self.fc3(self.gelu(self.fc2(self.gelu(self.fc1(x)))))


PROJECTORS = {
    "linear": LinearProjector,
    "gelu-mlp": MLPProjector,
    "fused-gelu-mlp": FusedMLPProjector,
}


def make_projector(config: ProjectorConfig) -> nn.Module:
    """The projector of kind ``config.model_type``."""
    return PROJECTORS[config.model_type](config)
