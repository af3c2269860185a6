"""What the tests of both kinds of CUDA kernels share."""

import mlx.core as mx
import pytest

needs_gpu = pytest.mark.skipif(
    not mx.cuda.is_available(), reason="the kernels run on NVIDIA GPUs only"
)
# The kernels round less often than the modules do; the modules' own error is the measure.
MAX_ERROR_RATIO = 1.5


def relative_error(actual: mx.array, expected: mx.array) -> float:
    """Norm of the difference over that of ``expected``, in float32."""
    difference = actual.astype(mx.float32) - expected
    return (mx.linalg.norm(difference) / mx.linalg.norm(expected)).item()
