"""The product that streams its weights, run on the CPU: its layouts, arithmetic and barriers."""

import mlx.core as mx
import pytest
from cuda_support import relative_error
from kernels_on_cpu import COMPILER
from mlx_vlm.models.moxin.cuda import kernel, matmul_kernels, stream_tiling
from mlx_vlm.models.moxin.cuda.projections import Format
from test_matmul_kernels import random_matrix
from threads_on_cpu import ThreadsOnCpu

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.mark.parametrize(
    ("form", "dtype", "matrices", "rows", "width", "is_gated"),
    [
        # A warp has rows of several matrices; K in parts, of which one has two chunks.
        pytest.param(Format(8, 64), mx.bfloat16, (100, 20, 12), 20, 768, False, id="three"),
        pytest.param(Format(8, 32), mx.float16, (24, 24), 50, 1536, True, id="gated"),
        pytest.param(Format(4, 128), mx.bfloat16, (24, 24), 17, 1536, True, id="4 bits"),
        pytest.param(Format(16, 0), mx.bfloat16, (40,), 33, 512, False, id="plain"),
    ],
)
def test_products(form, dtype, matrices, rows, width, is_gated, tmp_path, monkeypatch, on_hopper):
    mx.random.seed(0)
    monkeypatch.setattr(stream_tiling, "BITS", dict.fromkeys(stream_tiling.ROW_TILES, (form.bits,)))
    columns = matrices[0] if is_gated else sum(matrices)
    division = stream_tiling.find_division(form, columns, rows, width, is_gated)
    # Fewer thread blocks, of more warps than rows of weights need.
    division = division._replace(active=5, blocks=-(-columns // (40 if is_gated else 80)))
    division = division._replace(splits=1 if is_gated else 2)
    division = division._replace(blocks=division.blocks * division.splits)
    memory = stream_tiling._shared_memory(form, division.rows, division.warps, division.stages)
    assert memory < 227 * 1024
    monkeypatch.setattr(matmul_kernels, "find_division", lambda *arguments: division)
    monkeypatch.setattr(kernel, "build", ThreadsOnCpu(tmp_path, blocks=division.blocks))
    x = mx.random.normal((rows, width)).astype(dtype)
    arrays, whole = zip(*(random_matrix(count, width, dtype, form) for count in matrices))
    multiply = matmul_kernels.multiply.__wrapped__
    run, splits = multiply(dtype, form, matrices, rows, width, is_gated)
    (actual,) = run(x, *(array for matrix in arrays for array in matrix))
    products = [x.astype(mx.float32) @ matrix.T for matrix in whole]
    if is_gated:
        assert relative_error(actual, products[0] * mx.sigmoid(products[0]) * products[1]) < 3e-3
    else:
        assert splits == 2
        assert relative_error(actual.sum(axis=0), mx.concatenate(products, axis=1)) < 5e-4
