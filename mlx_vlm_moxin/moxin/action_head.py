"""OpenVLA-OFT's additions to the model: the L1 regression head and the state's projector.

Paper: https://arxiv.org/abs/2502.19645. Reference and parameter names:
``prismatic/models/action_heads.py`` and ``projectors.py`` of moojink/openvla-oft.
"""

import mlx.core as mx
import mlx.nn as nn

NUM_BLOCKS = 2


class ResidualBlock(nn.Module):
    """``x + relu(linear(norm(x)))``."""

    def __init__(self, width: int):
        super().__init__()
        self.ffn = [nn.LayerNorm(width), nn.Linear(width, width)]

    def __call__(self, x: mx.array) -> mx.array:
        norm, linear = self.ffn
        return x + nn.relu(linear(norm(x)))


class L1ActionHead(nn.Module):
    """Actions from the hidden states of their placeholders, one for each dimension.

    Args:
        hidden_size: of the decoder.
        width: of the head.
        action_dim: values of an action.
    """

    def __init__(self, hidden_size: int, width: int, action_dim: int):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(action_dim * hidden_size)
        self.fc1 = nn.Linear(action_dim * hidden_size, width)
        self.mlp_resnet_blocks = [ResidualBlock(width) for _ in range(NUM_BLOCKS)]
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, action_dim)

    def __call__(self, hidden_states: mx.array) -> mx.array:
        """``[B, chunk_size * action_dim, hidden_size]`` to ``[B, chunk_size, action_dim]``."""
        B = hidden_states.shape[0]
        x = hidden_states.reshape(B, -1, self.fc1.weight.shape[1])
        x = nn.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class ProprioProjector(nn.Module):
    """The robot's state as one more token: ``fc2(gelu(fc1(x)))`` with the exact GELU.

    Args:
        proprio_dim: values of the state.
        hidden_size: of the decoder.
    """

    def __init__(self, proprio_dim: int, hidden_size: int):
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        """``[B, proprio_dim]`` to ``[B, hidden_size]``."""
        return self.fc2(nn.gelu(self.fc1(x)))
