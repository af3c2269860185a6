"""The decoder's linear layers, which read their quantised weights once for a whole batch."""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map


class QuantizedLinear(nn.QuantizedLinear):
    """``nn.QuantizedLinear`` with every dimension of ``x`` but the last made one.

    MLX's CUDA backend takes each leading index of ``x`` for a product of its own: with
    the ``[B, 1, D]`` of a decoding step it reads and unpacks the weights ``B`` times.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """``[..., D]`` to ``[..., D']``."""
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """``nn.Linear`` that quantises to :class:`QuantizedLinear`."""

    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        quantize_input: bool = False,
    ) -> nn.Module:
        """The quantised layer; with ``quantize_input``, MLX's own ``QQLinear``."""
        if quantize_input:
            return super().to_quantized(group_size, bits, mode, quantize_input)
        return QuantizedLinear.from_linear(self, group_size, bits, mode)


def replace_linears(module: nn.Module) -> None:
    """Make every ``nn.Linear`` in ``module`` a :class:`Linear`, before weights are loaded."""

    def replaced(layer: nn.Module) -> nn.Module:
        if not isinstance(layer, nn.Linear):
            return layer
        output_dims, input_dims = layer.weight.shape
        return Linear(input_dims, output_dims, bias="bias" in layer)

    leaves = module.leaf_modules()
    module.update_modules(tree_map(replaced, leaves, is_leaf=nn.Module.is_module))
