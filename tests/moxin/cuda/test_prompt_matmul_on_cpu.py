"""Hopper's products of prompts, run on the CPU: their layouts, arithmetic and barriers."""

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import relative_error
from kernels_on_cpu import COMPILER
from mlx_vlm.models.moxin.cuda import kernel, prompt_matmul
from mlx_vlm.models.moxin.cuda.arranged import Order
from mlx_vlm.models.moxin.cuda.projections import PLAIN_FORMAT, Format
from mlx_vlm.models.moxin.cuda.prompt_division import Division
from test_prompt_matmul import products, random_weights
from threads_on_cpu import ThreadsOnCpu

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def launch(dtype, form, matrices, rows, width, division, tmp_path, monkeypatch, *options, **more):
    """The product by the kernel, and those of each matrix in float32."""
    mx.random.seed(0)
    order, build = Order(form.bits, 96 if rows <= 192 else 320), ThreadsOnCpu(tmp_path)
    monkeypatch.setattr(kernel, "build", build)
    monkeypatch.setattr(prompt_matmul, "find_division", lambda *_: division)
    arrays, whole = random_weights(dtype, form, matrices, width)
    x = (mx.random.normal((rows, width)) / width**0.5).astype(dtype)
    multiply = prompt_matmul.multiply.__wrapped__
    run, parts = multiply(dtype, form, matrices, order, rows, width, *options, **more)
    assert parts == division.parts
    actual, _ = run(plain_kernels.in_order(x, order), *arrays, prompt_matmul.flags())
    assert not build.arrays[-1].any()
    return actual, products(x, whole)


@pytest.mark.parametrize(
    ("dtype", "form", "rows", "division"),
    [
        # Two pairs of tiles of weights, and two tiles of x if there are more than 96 rows.
        pytest.param(mx.bfloat16, Format(8, 64), 100, Division(3, 0, 1), id="whole items"),
        pytest.param(mx.bfloat16, Format(8, 64), 100, Division(3, 4, 1), id="cut items"),
        pytest.param(mx.bfloat16, Format(8, 64), 100, Division(2, 3, 1), id="cut and whole items"),
        pytest.param(mx.bfloat16, Format(8, 64), 70, Division(3, 2, 2), id="unequal parts"),
        pytest.param(mx.bfloat16, Format(8, 64), 310, Division(2, 2, 1), id="the largest tile"),
        pytest.param(mx.bfloat16, PLAIN_FORMAT, 100, Division(3, 4, 1), id="plain, cut items"),
        pytest.param(
            mx.float16,
            PLAIN_FORMAT,
            70,
            Division(3, 2, 2),
            marks=pytest.mark.slow,
            id="plain, unequal parts",
        ),
        pytest.param(
            mx.bfloat16,
            PLAIN_FORMAT,
            310,
            Division(2, 2, 1),
            marks=pytest.mark.slow,
            id="plain, the largest tile",
        ),
        pytest.param(
            mx.float16, Format(4, 32), 100, Division(4, 4, 1), marks=pytest.mark.slow, id="float16"
        ),
        pytest.param(
            mx.bfloat16, Format(4, 128), 70, Division(4, 2, 2), marks=pytest.mark.slow, id="4 bits"
        ),
    ],
)
def test_products(dtype, form, rows, division, tmp_path, monkeypatch, kernels_everywhere):
    actual, expected = launch(dtype, form, (64, 24, 48), rows, 512, division, tmp_path, monkeypatch)
    assert relative_error(actual.sum(axis=0), mx.concatenate(expected, axis=1)) < 5e-4


@pytest.mark.parametrize("division", [Division(3, 4, 1), Division(3, 2, 2)], ids=str)
def test_products_with_rounded_parts(division, tmp_path, monkeypatch, kernels_everywhere):
    rows, kind = 100 if division.parts == 1 else 70, mx.bfloat16
    arguments = kind, Format(8, 64), (64, 24, 48), rows, 512, division, tmp_path, monkeypatch
    actual, expected = launch(*arguments, part=kind)
    assert actual.dtype == kind
    whole = actual.astype(mx.float32).sum(axis=0)
    assert relative_error(whole, mx.concatenate(expected, axis=1)) < 3e-3


@pytest.mark.parametrize(
    ("dtype", "form", "next_bits"),
    [
        (mx.bfloat16, Format(4, 64), 8),
        (mx.bfloat16, PLAIN_FORMAT, 16),
        pytest.param(mx.float16, Format(8, 32), 0, marks=pytest.mark.slow),
    ],
)
def test_gated_products(dtype, form, next_bits, tmp_path, monkeypatch, kernels_everywhere):
    following, division = Order(next_bits, 96) if next_bits else None, Division(3, 4, 1)
    actual, (gates, values) = launch(
        dtype, form, (256, 256), 70, 512, division, tmp_path, monkeypatch, following, True
    )
    if following is not None:
        actual = plain_kernels.out_of_order(actual, following, 70)
    assert relative_error(actual, gates * mx.sigmoid(gates) * values) < 3e-3
