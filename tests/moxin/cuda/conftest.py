"""Kernels that a test has replaced must not be kept for the next one."""

import pytest
from mlx_vlm.models.moxin.cuda import (
    fused_prompt,
    kernel,
    kv_cache,
    layerwise_kernels,
    tower_kernel,
)


@pytest.fixture
def kernels_everywhere(kernels_everywhere):
    kept = (
        fused_prompt._kernel,
        kv_cache.gather_caches,
        kernel.compiled,
        layerwise_kernels.add_norm,
        layerwise_kernels.attend,
        layerwise_kernels.multiply,
        layerwise_kernels.rotate,
        tower_kernel.tower_layers,
    )
    for function in kept:
        function.cache_clear()
    yield kernels_everywhere
    for function in kept:
        function.cache_clear()
