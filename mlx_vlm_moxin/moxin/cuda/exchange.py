"""The sums of a sharded decoder that is computed layer by layer."""

import functools
import math

import mlx.core as mx

from . import device, kernel, peers
from . import layerwise_kernels as kernels
from .decoder_sizes import DecoderSizes
from .kernel import Kernel

THREADS = 256


def add_norm(
    sizes: DecoderSizes, product: mx.array, splits: int, residual: mx.array, norm: mx.array
) -> list[mx.array]:
    """``residual`` plus the products of all processes, and its norm.

    Args:
        product: of this process, as in ``layerwise_kernels``; each is rounded to the model's dtype.
        splits: number of its parts.
        residual: hidden states ``[rows, hidden]``, the same in all processes.
        norm: weight of the norm.
    """
    dtype, shape, group = sizes.dtype, residual.shape, sizes.group
    found = peers.of(group)
    if found is not None and found.fits(residual.nbytes):
        exchange = exchange_norm(dtype, *shape, sizes.eps, product.dtype, splits, group)
        return exchange(product, residual, norm, found.addresses)
    if splits:
        product = product.astype(mx.float32).sum(axis=0).astype(dtype)
    product = mx.distributed.all_sum(product, group=group)
    return kernels.add_norm(dtype, *shape, sizes.eps, dtype, 0)(product, residual, norm)


@functools.lru_cache
def exchange_norm(
    dtype: mx.Dtype,
    rows: int,
    width: int,
    eps: float,
    product: mx.Dtype,
    splits: int,
    group: mx.distributed.Group,
) -> Kernel:
    """As ``layerwise_kernels.add_norm``, for the sum of the products of all processes.

    Args:
        dtype: of the residual and the results.
        rows: tokens.
        width: hidden size.
        eps: of the norm.
        product: dtype of this process's product.
        splits: its parts; 0 for a product of MLX.
        group: the processes, which must share memory (``peers.of``).

    Returns:
        A kernel as in ``layerwise_kernels.add_norm``, with ``Peers.addresses`` as the last input.
    """
    found = peers.of(group)
    units = rows * width // 8
    return kernel.build(
        "exchange_norm",
        {
            "T": dtype,
            "Product": product,
            "WIDTH": width,
            "EPS": eps,
            "THREADS": THREADS,
            **found.constants,
        },
        [product, dtype, dtype, mx.uint32],
        {"sum": ((rows, width), dtype), "normed": ((rows, width), dtype)},
        {"rows": rows, "splits": splits, **found.scalars},
        blocks=min(device.multiprocessors(), math.ceil(units / THREADS)),
        threads=THREADS,
        waits=True,
    )
