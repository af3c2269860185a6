"""Products of a few rows, those without a kernel, and weights that are unpacked for MLX."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from cuda_support import assert_as_close, needs_gpu, relative_error
from mlx_vlm.models.moxin.cuda import matmul_kernels, stream_tiling
from mlx_vlm.models.moxin.cuda.projections import Format


@pytest.mark.parametrize(("rows", "width", "columns"), [(65, 256, 64), (8, 192, 64), (8, 256, 333)])
def test_some_sizes_have_no_kernel(rows, width, columns, kernels_everywhere):
    form = Format(16, 0)
    assert matmul_kernels.multiply(mx.bfloat16, form, (columns,), rows, width) is None


def random_matrix(rows, width, dtype, form):
    """Arrays of a matrix, and the matrix itself in float32."""
    matrix = (mx.random.normal((rows, width)) / width**0.5).astype(dtype)
    if form.bits == 16:
        return [matrix], matrix.astype(mx.float32)
    packed = mx.quantize(matrix, form.group_size, form.bits)
    floats = [array.astype(mx.float32) for array in packed[1:]]
    whole = mx.dequantize(packed[0], *floats, form.group_size, form.bits)
    return list(packed), whole.astype(dtype).astype(mx.float32)


@needs_gpu
@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        (Format(16, 0), mx.bfloat16),
        (Format(8, 64), mx.bfloat16),
        (Format(8, 32), mx.float16),
        (Format(4, 64), mx.bfloat16),
        (Format(4, 128), mx.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [9, 17, 32, 50])
@pytest.mark.parametrize(
    ("matrices", "width", "is_gated"),
    [((200, 52, 52), 1024, False), ((72, 72), 3072, True), ((4096,), 768, False)],
)
@pytest.mark.parametrize("streams", [True, False])
def test_products_of_few_rows_are_as_close_as_those_of_mlx(
    form, dtype, rows, matrices, width, is_gated, streams, monkeypatch
):
    """By both kernels, on Hopper, where one streams the weights for some formats only."""
    bits = (form.bits,) if streams else ()
    monkeypatch.setattr(stream_tiling, "BITS", dict.fromkeys(stream_tiling.ROW_TILES, bits))
    mx.random.seed(0)
    x = mx.random.normal((rows, width)).astype(dtype)
    arrays, whole = zip(*(random_matrix(count, width, dtype, form) for count in matrices))
    # GPUs multiply float32 with reduced precision.
    exact = [mx.matmul(x.astype(mx.float32), w.T, stream=mx.cpu) for w in whole]
    allowed = [x @ matrix.astype(dtype).T for matrix in whole]
    if is_gated:
        exact, allowed = ([nn.silu(parts[0]) * parts[1]] for parts in (exact, allowed))
    multiply, splits = matmul_kernels.multiply.__wrapped__(
        dtype, form, matrices, rows, width, is_gated
    )
    (actual,) = multiply(x, *(array for matrix in arrays for array in matrix))
    assert splits == (1 if is_gated else len(actual))
    if not is_gated:
        actual = actual.sum(axis=0)
    assert_as_close(actual, mx.concatenate(allowed, axis=1), mx.concatenate(exact, axis=1))


@needs_gpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (8, 32), (4, 64), (4, 128)])
@pytest.mark.parametrize("rows", [(96, 32, 32), (64, 64), (1000,)])
def test_unpacked_weights_are_those_of_mlx(dtype, bits, group_size, rows):
    form, arrays, expected = Format(bits, group_size), [], []
    for count in rows:
        packed = mx.quantize(mx.random.normal((count, 640)).astype(dtype), group_size, bits)
        arrays += packed
        floats = [array.astype(mx.float32) for array in packed[1:]]
        expected.append(mx.dequantize(packed[0], *floats, group_size, bits).astype(dtype))
    (actual,) = matmul_kernels.unpack_weights(dtype, form, rows, 640)(*arrays)
    assert relative_error(actual, mx.concatenate(expected).astype(mx.float32)) < 2**-10
