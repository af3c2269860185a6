"""Prismatic's fused GELU MLP between vision and language (``no-align+fused-gelu-mlp``)."""

import mlx.core as mx
import mlx.nn as nn

from .config import ProjectorConfig


class MultiModalProjector(nn.Module):
    """``fc3(gelu(fc2(gelu(fc1(x)))))`` with the exact GELU.

    Its attribute in the model is called ``multi_modal_projector``: that name keeps
    mlx-vlm's converter from quantising it.
    """

    def __init__(self, config: ProjectorConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.input_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.output_size)
        self.fc3 = nn.Linear(config.output_size, config.output_size)

    def __call__(self, x: mx.array) -> mx.array:
        """``[B, N, input_size] -> [B, N, output_size]``."""
        return self.fc3(nn.gelu(self.fc2(nn.gelu(self.fc1(x)))))
