"""Rotation and attention of prompts, run on the CPU: masks, old and new keys, order of results."""

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import relative_error
from kernels_on_cpu import COMPILER
from mlx_vlm.models.moxin.cuda import kernel, layerwise_kernels
from mlx_vlm.models.moxin.cuda.arranged import Order
from mlx_vlm.models.moxin.cuda.decoder_sizes import DecoderSizes
from mlx_vlm.models.moxin.cuda.tiling import FEW_QUERIES, MANY_QUERIES
from threads_on_cpu import ThreadsOnCpu

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

HEADS, KV_HEADS, CAPACITY = 4, 2, 64
PADDING = [0, 5]


def make_sizes(window=0, head_dim=64):
    return DecoderSizes(mx.bfloat16, 256, 512, HEADS, KV_HEADS, head_dim, window, 1e-5, 10000.0)


@pytest.mark.parametrize(
    ("queries", "filled", "window", "is_causal", "order", "room", "head_dim"),
    [
        (MANY_QUERIES, 0, 0, False, None, 0, 64),
        (MANY_QUERIES, 37, 50, True, Order(8, 96), 0, 64),
        (FEW_QUERIES, 37, 0, True, None, 0, 64),
        (FEW_QUERIES, 64, 20, True, None, 0, 64),
        (MANY_QUERIES, 0, 0, True, None, 128, 64),
        (MANY_QUERIES // 2, 37, 0, True, None, 0, 64),
        (FEW_QUERIES, 0, 0, True, Order(4, 96), 0, 128),
        (MANY_QUERIES, 0, 0, True, Order(4, 96), 0, 64),
        (FEW_QUERIES, 0, 0, True, Order(16, 96), 0, 64),
    ],
    ids=[
        "whole",
        "cache, window and order",
        "few queries",
        "few queries and window",
        "room",
        "half as many queries",
        "order of 4 bits",
        "order of 4 bits with other heads",
        "order of plain weights",
    ],
)
def test_attention_is_that_of_float32(
    queries,
    filled,
    window,
    is_causal,
    order,
    room,
    head_dim,
    kernels_everywhere,
    monkeypatch,
    tmp_path,
):
    monkeypatch.setattr(kernel, "build", ThreadsOnCpu(tmp_path))
    monkeypatch.setattr(layerwise_kernels, "count_queries", lambda *_: queries)
    mx.random.seed(0)
    sizes = make_sizes(window, head_dim)
    tokens = layerwise_kernels.Tokens(2, 70, is_causal, room)

    def random(*shape):
        return 3 * mx.random.normal(shape).astype(mx.bfloat16)

    def with_room(x):
        return mx.pad(
            x, [(0, 0), (0, 0), (0, tokens.positions - x.shape[2]), (0, 0)], constant_values=mx.nan
        )

    cached = [random(2, KV_HEADS, CAPACITY, head_dim) for _ in range(2)]
    new = [with_room(random(2, KV_HEADS, 70, head_dim)) for _ in range(2)]
    arrays = random(2, 70, HEADS, head_dim), *cached, *new
    places = mx.full(4, filled), mx.array([*PADDING, 0, 0], mx.int32)
    run = layerwise_kernels.attend.__wrapped__(sizes, tokens, CAPACITY, order)
    (actual,) = run(*arrays, *places)
    if order is not None:
        actual = plain_kernels.out_of_order(actual, order, tokens.rows)
    plain = plain_kernels.attend(sizes, tokens, CAPACITY)
    (expected,) = plain(*(array.astype(mx.float32) for array in arrays), *places)
    visible = mx.concatenate(
        [mx.arange(70 * b, 70 * b + 70)[max(0, pad - filled) :] for b, pad in enumerate(PADDING)]
    )
    assert relative_error(actual[visible], expected[visible]) < 4e-3


@pytest.mark.parametrize("splits", [0, 2])
@pytest.mark.parametrize("room", [0, 16])
def test_queries_and_keys_are_rotated(splits, room, kernels_everywhere, monkeypatch, tmp_path):
    monkeypatch.setattr(kernel, "build", ThreadsOnCpu(tmp_path))
    mx.random.seed(0)
    sizes, tokens = make_sizes(), layerwise_kernels.Tokens(2, 5, capacity=room)
    widths = sizes.attended, sizes.keys, sizes.keys
    kind = mx.float32 if splits else sizes.dtype
    if splits:
        products = 3 * [mx.random.normal((splits, 10, sum(widths)))]
    else:
        products = [mx.random.normal((10, width)).astype(kind) for width in widths]
    places = mx.full(4, 9), mx.array([*PADDING, 0, 0], mx.int32)
    arguments = sizes, tokens, kind, splits
    actual = layerwise_kernels.rotate.__wrapped__(*arguments)(*products, *places)
    expected = plain_kernels.rotate(*arguments)(*products, *places)
    for one, other in zip(actual, expected):
        assert one.shape == other.shape
        assert relative_error(one, other) < 4e-3
        assert one is actual[0] or not one[:, :, tokens.length :].any().item()
