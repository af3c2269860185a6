"""The kernels between the products of prompts, run on the CPU: orders, parts and positions."""

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import relative_error
from kernels_on_cpu import COMPILER
from mlx_vlm.models.moxin.cuda import arranged, kernel, layerwise_kernels, step_attention
from mlx_vlm.models.moxin.cuda.arranged import Order
from mlx_vlm.models.moxin.cuda.decoder_sizes import DecoderSizes
from threads_on_cpu import ThreadsOnCpu

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

ROWS, WIDTH = 40, 512
ORDERS = [Order(8, 32), Order(4, 32), Order(16, 32)]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel, "build", ThreadsOnCpu(tmp_path))
    mx.random.seed(0)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_arranged_rows_are_those_of_the_order(order):
    x = mx.random.normal((ROWS, WIDTH)).astype(mx.bfloat16)
    (actual,) = arranged.arrange.__wrapped__(mx.bfloat16, order, ROWS, WIDTH)(x)
    assert mx.array_equal(plain_kernels.out_of_order(actual, order, ROWS), x)


@pytest.mark.parametrize(
    ("dtype", "product", "splits", "order"),
    [
        (mx.bfloat16, mx.bfloat16, 0, None),
        (mx.bfloat16, mx.bfloat16, 5, ORDERS[0]),
        (mx.bfloat16, mx.float32, 2, ORDERS[2]),
        (mx.float16, mx.float32, 5, ORDERS[1]),
    ],
)
def test_sum_and_norm(dtype, product, splits, order):
    parts = mx.random.normal((max(splits, 1), ROWS, WIDTH)).astype(product)
    residual, weight = mx.random.normal((ROWS, WIDTH)), mx.random.normal((WIDTH,))
    inputs = parts if splits else parts[0], residual.astype(dtype), weight.astype(dtype)
    options = ROWS, WIDTH, 1e-5
    run = layerwise_kernels.add_norm.__wrapped__(dtype, *options, product, splits, order)
    total, normed = run(*inputs)
    if order is not None:
        normed = plain_kernels.out_of_order(normed, order, ROWS)
    plain = plain_kernels.add_norm(mx.float32, *options, mx.float32, splits)
    expected = plain(*(array.astype(mx.float32) for array in inputs))
    for actual, exact in zip((total, normed), expected):
        assert relative_error(actual, exact) < 4e-3


@pytest.mark.parametrize(
    ("product", "splits"), [(mx.bfloat16, 0), (mx.bfloat16, 3), (mx.float32, 3)], ids=str
)
def test_rotated_heads(product, splits):
    dtype, heads, kv_heads, head_dim = mx.bfloat16, 6, 3, 64
    tokens = layerwise_kernels.Tokens(2, 18)
    sizes = DecoderSizes(
        dtype, 384, 512, heads, kv_heads, head_dim, window=0, eps=1e-5, theta=10000.0
    )
    columns = sizes.attended, sizes.keys, sizes.keys
    if splits:
        inputs = 3 * [mx.random.normal((splits, tokens.rows, sum(columns))).astype(product)]
    else:
        inputs = [mx.random.normal((tokens.rows, count)).astype(product) for count in columns]
    places = mx.full(4, 37), mx.array([0, 5, 0, 0], mx.int32)
    run = layerwise_kernels.rotate.__wrapped__(sizes, tokens, product, splits)
    exact = sizes._replace(dtype=mx.float32)
    plain = plain_kernels.rotate(exact, tokens, mx.float32, splits)
    expected = plain(*(array.astype(mx.float32) for array in inputs), *places)
    for actual, array in zip(run(*inputs, *places), expected):
        assert relative_error(actual, array.reshape(actual.shape)) < 4e-3


@pytest.mark.parametrize(("product", "splits"), [(mx.bfloat16, 3), (mx.float32, 2)], ids=str)
def test_attention_of_a_step_adds_up_the_parts(product, splits):
    batch, capacity = 2, 64
    sizes = DecoderSizes(mx.bfloat16, 256, 512, 4, 2, 64, 0, 1e-5, 10000.0)
    parts = mx.random.normal((splits, batch, sizes.attended + 2 * sizes.keys)).astype(product)
    cached = [mx.random.normal((batch, 2, capacity, 64)).astype(mx.bfloat16) for _ in range(2)]
    places = mx.full(4, 37), mx.array([0, 5, 0, 0], mx.int32)
    run = step_attention.step_attention.__wrapped__(sizes, batch, capacity, product, splits)
    actual, _, _ = run(parts, parts, parts, *places, *cached)
    exact = sizes._replace(dtype=mx.float32)
    plain = plain_kernels.step_attention(exact, batch, capacity, mx.float32, splits)
    floats = [array.astype(mx.float32) for array in (parts, parts, parts, *cached)]
    expected, _, _ = plain(*floats[:3], *places, *floats[3:])
    assert relative_error(actual, expected.reshape(actual.shape)) < 4e-3
