"""Products without a kernel, and weights that are unpacked for MLX."""

import mlx.core as mx
import pytest
from cuda_support import needs_gpu, relative_error
from mlx_vlm.models.moxin.cuda import matmul_kernels
from mlx_vlm.models.moxin.cuda.projections import Format


@pytest.mark.parametrize(("rows", "width", "columns"), [(65, 256, 64), (8, 192, 64), (8, 256, 333)])
def test_some_sizes_have_no_kernel(rows, width, columns, kernels_everywhere):
    form = Format(16, 0)
    assert matmul_kernels.multiply(mx.bfloat16, form, (columns,), rows, width) is None


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
