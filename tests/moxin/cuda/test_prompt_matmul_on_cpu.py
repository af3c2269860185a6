"""Hopper's products of prompts, run on the CPU: their layouts, arithmetic and barriers."""

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import relative_error
from kernels_on_cpu import COMPILER
from mlx_vlm.models.moxin.cuda import kernel, prompt_matmul
from mlx_vlm.models.moxin.cuda.arranged import Order
from mlx_vlm.models.moxin.cuda.projections import Format
from test_prompt_matmul import products, quantized
from threads_on_cpu import ThreadsOnCpu

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def launch(dtype, form, matrices, rows, width, tmp_path, monkeypatch, *options):
    """The product by the kernel, and those of each matrix in float32."""
    mx.random.seed(0)
    order = Order(form.bits, 96)
    monkeypatch.setattr(kernel, "build", ThreadsOnCpu(tmp_path, blocks=3))
    arrays, whole = quantized(dtype, form, matrices, width)
    x = (mx.random.normal((rows, width)) / width**0.5).astype(dtype)
    multiply = prompt_matmul.multiply.__wrapped__
    run, _ = multiply(dtype, form, matrices, order, rows, width, *options)
    (actual,) = run(plain_kernels.in_order(x, order), *arrays)
    return actual, products(x, whole)


@pytest.mark.parametrize(
    ("dtype", "form"),
    [
        (mx.bfloat16, Format(8, 64)),
        pytest.param(mx.float16, Format(4, 32), marks=pytest.mark.slow),
        pytest.param(mx.bfloat16, Format(4, 128), marks=pytest.mark.slow),
    ],
)
def test_products(dtype, form, tmp_path, monkeypatch, kernels_everywhere):
    matrices, rows = (64, 24, 48), 100  # four tiles of weights and two of x
    actual, expected = launch(dtype, form, matrices, rows, 512, tmp_path, monkeypatch)
    assert relative_error(actual.sum(axis=0), mx.concatenate(expected, axis=1)) < 5e-4


@pytest.mark.parametrize(
    ("dtype", "form", "next_bits"),
    [
        (mx.bfloat16, Format(4, 64), 8),
        pytest.param(mx.float16, Format(8, 32), 0, marks=pytest.mark.slow),
    ],
)
def test_gated_products(dtype, form, next_bits, tmp_path, monkeypatch, kernels_everywhere):
    following = Order(next_bits, 96) if next_bits else None
    actual, (gates, values) = launch(
        dtype, form, (256, 256), 70, 256, tmp_path, monkeypatch, following, True
    )
    if following is not None:
        actual = plain_kernels.out_of_order(actual, following, 70)
    assert relative_error(actual, gates * mx.sigmoid(gates) * values) < 3e-3
