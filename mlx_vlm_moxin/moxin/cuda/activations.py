"""Activation functions outside of the products' kernels.

MLX compiles its fused functions when they are first used, in 4 to 5 s each; ours take 0.1 s and are
compiled while weights are read.
"""

import functools
import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from . import device, kernel
from .kernel import DTYPES, Kernel

THREADS = 256
# Values of a thread.
UNIT = 8


@functools.lru_cache
def gelu_kernel(dtype: mx.Dtype, count: int) -> Kernel:
    """The kernel of ``count`` values, a multiple of ``UNIT``, to as many."""
    return kernel.build(
        "gelu",
        {"T": dtype, "THREADS": THREADS},
        [dtype],
        {"out": ((count,), dtype)},
        {"units": count // UNIT},
        blocks=math.ceil(count // UNIT / THREADS),
        threads=THREADS,
    )


def gelu(module: nn.Module, x: mx.array) -> mx.array:
    """The exact GELU of ``x`` in ``module``, by the kernel where it supports that."""
    if module.training or x.dtype not in DTYPES or x.size % UNIT or not device.enabled():
        return nn.gelu(x)
    try:
        return gelu_kernel(x.dtype, x.size)(x.flatten())[0].reshape(x.shape)
    except RuntimeError as error:
        device.disable_after(error)
        return nn.gelu(x)


@functools.lru_cache
def swiglu_kernel(dtype: mx.Dtype, rows: int, width: int, is_joined: bool) -> Kernel:
    """The kernel of gate and up ``[rows, width]``, to ``silu(gate) * up``.

    Args:
        is_joined: both are one product ``[rows, 2 * width]``, which is given twice.
    """
    return kernel.build(
        "swiglu",
        {
            "T": dtype,
            "WIDTH": width,
            "STRIDE": 2 * width if is_joined else width,
            "SHIFT": width if is_joined else 0,
            "THREADS": THREADS,
        },
        [dtype, dtype],
        {"out": ((rows, width), dtype)},
        {"rows": rows},
        blocks=math.ceil(rows * width // UNIT / THREADS),
        threads=THREADS,
    )


def swiglu(products: Sequence[mx.array]) -> mx.array:
    """``silu(gate) * up`` of two products ``[rows, width]``, or of one with both side by side."""
    is_joined, (rows, columns) = len(products) == 1, products[0].shape
    width = columns // 2 if is_joined else columns
    if width % UNIT or products[0].dtype not in DTYPES:
        gate, up = mx.split(products[0], 2, axis=-1) if is_joined else products
        return nn.silu(gate) * up
    run = swiglu_kernel(products[0].dtype, rows, width, is_joined)
    return run(products[0], products[-1])[0]
