"""Attention of prompts, run on the CPU: masks, old and new keys, and the order of results."""

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

HEADS, KV_HEADS, HEAD_DIM, CAPACITY = 4, 2, 64, 64
PADDING = [0, 5]


@pytest.mark.parametrize(
    ("queries", "filled", "window", "is_causal", "order"),
    [
        (MANY_QUERIES, 0, 0, False, None),
        (MANY_QUERIES, 37, 50, True, Order(8, 96)),
        (FEW_QUERIES, 37, 0, True, None),
        (FEW_QUERIES, 64, 20, True, None),
    ],
    ids=["whole", "cache, window and order", "few queries", "few queries and window"],
)
def test_attention_is_that_of_float32(
    queries, filled, window, is_causal, order, kernels_everywhere, monkeypatch, tmp_path
):
    monkeypatch.setattr(kernel, "build", ThreadsOnCpu(tmp_path))
    monkeypatch.setattr(layerwise_kernels, "count_queries", lambda *_: queries)
    mx.random.seed(0)
    dtype = mx.bfloat16
    sizes = DecoderSizes(dtype, 256, 512, HEADS, KV_HEADS, HEAD_DIM, window, 1e-5, 10000.0)
    tokens = layerwise_kernels.Tokens(2, 70, is_causal)

    def random(*shape):
        return 3 * mx.random.normal(shape).astype(dtype)

    arrays = (
        random(2, 70, HEADS, HEAD_DIM),
        *(random(2, KV_HEADS, length, HEAD_DIM) for length in (CAPACITY, CAPACITY, 70, 70)),
    )
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
