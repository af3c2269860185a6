"""The decoder's linear layers: MLX's, with quantised products adapted to its backends."""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

# From about this many rows on, dequantising a weight is faster on CPUs than a quantised product.
UNPACKED_ROWS = 32


class QuantizedLinear(nn.QuantizedLinear):
    """``nn.QuantizedLinear`` that flattens all dimensions of ``x`` but the last into one.

    MLX's CUDA backend computes a separate product for each leading index of ``x``: with
    the ``[B, 1, D]`` of a decoding step it reads and unpacks the weights ``B`` times.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """``[..., D]`` to ``[..., D']``."""
        rows = x.reshape(-1, x.shape[-1])
        if x.dtype != mx.float32 and mx.default_device() == mx.cpu:
            rows = self._half_precision_on_cpu(rows)
        else:
            rows = super().__call__(rows)
        return rows.reshape(*x.shape[:-1], -1)

    def _half_precision_on_cpu(self, x: mx.array) -> mx.array:
        """The product for ``x`` ``[R, D]`` in bfloat16 or float16.

        MLX 0.32.4's kernel adds up in that dtype: sums of 4,096 products are 7 % off, and take
        7 times as long as in float32. So few rows are multiplied in float32, and many with the
        dequantised weight.
        """
        packing = {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}
        dtype, scales, biases = x.dtype, self.scales, self.get("biases")
        if len(x) < UNPACKED_ROWS:
            x = x.astype(mx.float32)
            if biases is not None:
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            y = mx.quantized_matmul(x, self.weight, scales, biases, **packing).astype(dtype)
        else:
            y = x @ mx.dequantize(self.weight, scales, biases, **packing).astype(dtype).T
        return y + self.bias if "bias" in self else y


class Linear(nn.Linear):
    """``nn.Linear`` that quantises to ``QuantizedLinear``."""

    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        quantize_input: bool = False,
    ) -> nn.Module:
        """The quantised layer; with ``quantize_input``, MLX's ``QQLinear``."""
        if quantize_input:
            return super().to_quantized(group_size, bits, mode, quantize_input)
        return QuantizedLinear.from_linear(self, group_size, bits, mode)


def replace_linears(module: nn.Module) -> None:
    """Replace every ``nn.Linear`` in ``module`` by a ``Linear`` with the same weights."""

    def replaced(layer: nn.Module) -> nn.Module:
        if not isinstance(layer, nn.Linear):
            return layer
        linear = Linear.__new__(Linear)
        nn.Module.__init__(linear)  # Linear's __init__ would draw random weights
        for name, value in layer.items():
            linear[name] = value
        return linear

    leaves = module.leaf_modules()
    module.update_modules(tree_map(replaced, leaves, is_leaf=nn.Module.is_module))
