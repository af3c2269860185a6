"""The sums of a sharded decoder that is computed layer by layer."""

import functools
import math
from typing import Any

import mlx.core as mx

from . import device, kernel, peers
from . import layerwise_kernels as kernels
from .arranged import ROW_MAJOR, Order
from .decoder_sizes import DecoderSizes
from .kernel import Kernel

THREADS = 256
# Of the kernel of few rows.
ROW_THREADS = 512


def add_norm(
    sizes: DecoderSizes,
    product: mx.array,
    splits: int,
    residual: mx.array,
    norm: mx.array,
    order: Order | None = None,
) -> list[mx.array]:
    """``residual`` plus the products of all processes, and its norm.

    Args:
        product: of this process, as in ``layerwise_kernels``; each is rounded to the model's dtype.
        splits: number of its parts.
        residual: hidden states ``[rows, hidden]``, the same in all processes.
        norm: weight of the norm.
        order: of the norm, if the next product needs one.
    """
    dtype, shape, group = sizes.dtype, residual.shape, sizes.group
    found = peers.of(group)
    if found is not None and found.fits(residual.nbytes):
        exchange = exchange_norm(dtype, *shape, sizes.eps, product.dtype, splits, group, order)
        return exchange(product, residual, norm, found.addresses)
    if splits:
        product = product.astype(mx.float32).sum(axis=0).astype(dtype)
    product = mx.distributed.all_sum(product, group=group)
    return kernels.add_norm(dtype, *shape, sizes.eps, dtype, 0, order)(product, residual, norm)


@functools.lru_cache
def exchange_norm(
    dtype: mx.Dtype,
    rows: int,
    width: int,
    eps: float,
    product: mx.Dtype,
    splits: int,
    group: mx.distributed.Group,
    order: Order | None = None,
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
        order: of the norm, if the next product needs one.

    Returns:
        A kernel as in ``layerwise_kernels.add_norm``, with ``Peers.addresses`` as the last input.
    """
    found = peers.of(group)
    shape = (rows, width) if order is None else order.shape(rows, width)
    entry, threads = "exchange_norm", THREADS
    blocks = min(device.multiprocessors(), math.ceil(rows * width // 8 / THREADS))
    further: dict[str, Any] = {"Order": ROW_MAJOR if order is None else order.c_type}
    if order is None and found.has_mail(rows, width * dtype.size):
        entry, threads, blocks, further = "exchange_rows", ROW_THREADS, rows, {}
    return kernel.build(
        entry,
        {
            "T": dtype,
            "Product": product,
            "WIDTH": width,
            "EPS": eps,
            **further,
            "THREADS": threads,
            **found.constants,
        },
        [product, dtype, dtype, mx.uint32],
        {"sum": ((rows, width), dtype), "normed": (shape, dtype)},
        {"rows": rows, "splits": splits, **found.scalars},
        blocks=blocks,
        threads=threads,
        waits=True,
    )
