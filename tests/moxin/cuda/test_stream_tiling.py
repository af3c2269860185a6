"""How products of up to 64 rows are divided on Hopper; no GPU is needed."""

import pytest
from mlx_vlm.models.moxin.cuda import device, stream_tiling
from mlx_vlm.models.moxin.cuda.projections import Format

FORMATS = [Format(16, 0), Format(8, 64), Format(4, 32)]
# Columns, K and whether it is gated, of Moxin's products and its head.
PRODUCTS = [
    (6144, 4096, False),
    (4096, 4096, False),
    (14336, 4096, True),
    (4096, 14336, False),
    (32064, 4096, False),
]


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("rows", [9, 32, 64])
@pytest.mark.parametrize(("columns", "width", "is_gated"), PRODUCTS)
def test_all_multiprocessors_read_the_same_amount(
    form, rows, columns, width, is_gated, on_hopper, monkeypatch
):
    monkeypatch.setattr(stream_tiling, "BITS", dict.fromkeys(stream_tiling.ROW_TILES, (form.bits,)))
    division = stream_tiling.find_division(form, columns, rows, width, is_gated)
    assert division.rows >= rows
    assert division.shared_memory <= device.max_shared_memory()
    # All columns have a warp, and there is one round of thread blocks.
    per_warp = 8 if is_gated else 16
    assert division.blocks // division.splits * division.active * per_warp >= columns
    assert 120 <= division.blocks <= device.multiprocessors()
    assert division.splits == 1 or not is_gated


@pytest.mark.parametrize(("bits", "rows"), [(8, 9), (4, 32), (8, 64), (4, 33), (16, 33)])
def test_weights_are_streamed_where_that_is_faster(bits, rows, on_hopper):
    assert stream_tiling.find_division(Format(bits, 64), 4096, rows, 4096, False) is not None


@pytest.mark.parametrize(
    ("bits", "rows", "width"), [(8, 8, 4096), (8, 65, 4096), (8, 32, 4096 + 128), (16, 32, 4096)]
)
def test_other_products_use_other_kernels(bits, rows, width, on_hopper):
    assert stream_tiling.find_division(Format(bits, 64), 4096, rows, width, False) is None


def test_other_gpus_use_other_kernels(on_hopper, monkeypatch):
    monkeypatch.setattr(device, "has_warpgroups", lambda: False)
    assert stream_tiling.find_division(Format(8, 64), 4096, 32, 4096, False) is None
