"""The kernels of a layerwise pass in MLX, for tests of the code around them."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_vlm.models.moxin.cuda import (
    decoder_sizes,
    fused_batch,
    kv_cache,
    layerwise_graph,
    layerwise_kernels,
    matmul_kernels,
    prompt_matmul,
)
from mlx_vlm.models.moxin.cuda.layerwise_kernels import Tokens

SPLITS = 2


def use(patch: pytest.MonkeyPatch) -> None:
    """Let layerwise passes run these functions, in float32 too, instead of kernels."""
    for kernel in (multiply, unpack_weights):
        patch.setattr(matmul_kernels, kernel.__name__, kernel)
    for kernel in (add_norm, rotate, attend):
        patch.setattr(layerwise_kernels, kernel.__name__, kernel)
    patch.setattr(layerwise_graph, "arrange", arrange)
    patch.setattr(prompt_matmul, "multiply", multiply_arranged)
    patch.setattr(layerwise_graph, "step_attention", step_attention)
    patch.setattr(kv_cache, "gather_caches", gather_caches)
    patch.setattr(fused_batch.FusedBatch, "supports", lambda *arguments: False)
    patch.setattr(decoder_sizes, "DTYPES", (mx.float32,))


def _weights(form, matrices, arrays):
    """The matrices themselves."""
    assert len(arrays) == len(matrices) * len(form.arrays)
    if form.bits == 16:
        return arrays
    triples = [arrays[3 * index : 3 * index + 3] for index in range(len(matrices))]
    options = {"group_size": form.group_size, "bits": form.bits}
    return [mx.dequantize(*triple, **options) for triple in triples]


def multiply(dtype, form, matrices, rows, width, is_gated=False):
    def kernel(x, *arrays):
        products = [x @ weight.T for weight in _weights(form, matrices, arrays)]
        if is_gated:
            return [nn.silu(products[0]) * products[1]]
        product = mx.concatenate(products, axis=-1).astype(mx.float32)
        return [mx.stack([0.25 * product, 0.75 * product])]

    return (kernel, 1 if is_gated else SPLITS) if rows <= 64 and width % 128 == 0 else None


def _columns(bits, width):
    """Columns of x in the order of the tensor cores' steps."""
    count, at = 128 // bits, mx.arange(width)
    if bits == 16:
        return at
    lane, pair, value = at % 8 // 2, at % 16 // 8, at % 2
    return (
        at // (4 * count) * 4 * count
        + lane * count
        + at // 16 % (count // 4) * 4
        + pair * 2
        + value
    )


def _swizzled(pieces):
    """Pieces ``[..., tokens, 64]`` with chunk c of token r at c ^ r % 8, and the reverse."""
    chunks = pieces.reshape(*pieces.shape[:-1], 8, 8)
    places = mx.arange(8) ^ (mx.arange(pieces.shape[-2]) % 8)[:, None]
    places = mx.broadcast_to(places[..., None], chunks.shape)
    return mx.take_along_axis(chunks, places, axis=-2).reshape(pieces.shape)


def in_order(x, order):
    """``x`` ``[rows, width]`` in an order; zeros in rows after the last one."""
    if order is None:
        return x
    tiles, pieces, tokens, piece = order.shape(*x.shape)
    x = mx.pad(x[:, _columns(order.bits, x.shape[1])], [(0, tiles * tokens - len(x)), (0, 0)])
    return _swizzled(x.reshape(tiles, tokens, pieces, piece).swapaxes(1, 2))


def out_of_order(x, order, rows):
    """The reverse."""
    tiles, pieces, tokens, piece = x.shape
    x = _swizzled(x).swapaxes(1, 2).reshape(tiles * tokens, pieces * piece)[:rows]
    return x[:, mx.argsort(_columns(order.bits, x.shape[1]))]


def arrange(dtype, order, rows, width):
    return lambda x: [in_order(x, order)]


def multiply_arranged(
    dtype, form, matrices, order, rows, width, next_order=None, is_gated=False, part=mx.float32
):
    def kernel(x, *arrays):
        *arrays, _ = arrays  # the last one is for thread blocks
        assert x.shape == order.shape(rows, width)
        x = out_of_order(x, order, rows)
        products = [x @ weight.T for weight in _weights(form, matrices, arrays)]
        if is_gated:
            return [in_order(nn.silu(products[0]) * products[1], next_order)]
        product = mx.concatenate(products, axis=-1)
        return [mx.stack([0.25 * product, 0.75 * product]).astype(part)]

    return kernel, 1 if is_gated else SPLITS


def _whole(product, splits):
    return product.sum(axis=0) if splits else product


def add_norm(dtype, rows, width, eps, product, splits, order=None):
    def kernel(parts, residual, weight):
        assert parts.dtype == product
        total = (residual + _whole(parts, splits)).astype(dtype)
        return total, in_order(mx.fast.rms_norm(total, weight, eps), order)

    return kernel


def unpack_weights(dtype, form, matrices, width):
    def kernel(*arrays):
        return [mx.concatenate(_weights(form, matrices, arrays))]

    return kernel


def rotate(sizes, tokens, product, splits):
    counts = sizes.heads, sizes.kv_heads, sizes.kv_heads

    def kernel(*inputs):
        *products, filled, padding = inputs
        if splits:
            ends = [sizes.attended, sizes.attended + sizes.keys]
            assert products[0].dtype == product
            whole = _whole(products[0], splits if products[0].ndim == 3 else 0)
            products = mx.split(whole, ends, axis=-1)
        parts = [
            product.reshape(*tokens[:2], count, sizes.head_dim).swapaxes(1, 2).astype(sizes.dtype)
            for product, count in zip(products, counts)
        ]
        offset = filled[0] - padding[: tokens.batch]
        rope = {"traditional": False, "base": sizes.theta, "scale": 1.0, "offset": offset}
        queries, keys = (mx.fast.rope(part, sizes.head_dim, **rope) for part in parts[:2])
        room = [(0, 0), (0, 0), (0, tokens.positions - tokens.length), (0, 0)]
        return queries.swapaxes(1, 2), *(mx.pad(x, room) for x in (keys, parts[2]))

    return kernel


def attend(sizes, tokens, capacity, order=None):
    def kernel(queries, keys, values, new_keys, new_values, filled, padding):
        filled, padding = filled[0], padding[: tokens.batch, None, None, None]
        assert new_keys.shape[2] == new_values.shape[2] == tokens.positions
        if keys is new_keys:  # the cache is empty
            keys, values = (x[:, :, :0] for x in (keys, values))
        new_keys, new_values = (x[:, :, : tokens.length] for x in (new_keys, new_values))
        cached, new = mx.arange(keys.shape[2]), mx.arange(tokens.length)
        # Positions of the keys in the sequence; empty cache entries come after all others.
        place = mx.concatenate([mx.where(cached < filled, cached, 2**30), filled + new])
        position = (filled + new)[:, None]
        is_visible = place <= position if tokens.is_causal else place < filled + tokens.length
        mask = is_visible & (place >= padding)
        if sizes.window:
            mask = mask & (place > position - sizes.window)
        out = mx.fast.scaled_dot_product_attention(
            queries.swapaxes(1, 2),
            mx.concatenate([keys, new_keys], axis=2),
            mx.concatenate([values, new_values], axis=2),
            scale=sizes.head_dim**-0.5,
            mask=mask,
        )
        return [in_order(out.swapaxes(1, 2).reshape(tokens.rows, -1), order)]

    return kernel


def step_attention(sizes, batch, capacity, product, splits):
    tokens = Tokens(batch, 1)
    turn, attend_all = rotate(sizes, tokens, product, splits), attend(sizes, tokens, capacity)

    def kernel(*inputs):
        *products, filled, padding, keys, values = inputs
        queries, *new = turn(*products, filled, padding)
        (attended,) = attend_all(queries, keys, values, *new, filled, padding)
        # The kernel itself writes into the cache.
        is_new = (mx.arange(capacity) == filled[0])[:, None]
        return attended, *(mx.where(is_new, x, old) for x, old in zip(new, (keys, values)))

    return kernel


def gather_caches(dtype, count, old, new, capacity):
    def kernel(filled, *arrays):
        length, entries = filled[0].item(), []
        for index in range(count):
            parts = [arrays[index][..., :length, :]]
            parts += [arrays[index - count]] if new else []
            entry = mx.concatenate(parts, axis=2)
            entries.append(mx.pad(entry, [(0, 0), (0, 0), (0, capacity - entry.shape[2]), (0, 0)]))
        return [mx.concatenate(entries)]

    return kernel
