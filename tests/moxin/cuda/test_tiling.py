"""Which products have a kernel."""

import pytest
from mlx_vlm.models.moxin.cuda import device, tiling
from mlx_vlm.models.moxin.cuda.projections import Format


@pytest.mark.parametrize(
    ("gigabytes", "bits", "rows", "has_kernel"),
    [(80, 8, 128, True), (80, 8, 129, False), (80, 16, 65, False)]
    + [(12, 8, 512, True), (12, 8, 513, False), (12, 4, 384, True), (12, 4, 385, False)],
)
def test_small_gpus_do_not_unpack_the_weights_of_prompts(
    gigabytes, bits, rows, has_kernel, kernels_everywhere, monkeypatch
):
    monkeypatch.setattr(device, "memory", lambda: gigabytes * 10**9)
    form = Format(bits, 64)
    assert (tiling.find_tiling(form, rows, 4096) is not None) is has_kernel
