"""How products of prompts on Hopper are divided among thread blocks."""

import itertools

import pytest
from mlx_vlm.models.moxin.cuda import device
from mlx_vlm.models.moxin.cuda.prompt_division import Division, find_division

LOOP_FLOPS = 2 * 256 * 128 * 288
PART = 4 * 288 * 4096


@pytest.fixture(autouse=True)
def h200(monkeypatch):
    monkeypatch.setattr(device, "multiprocessors", lambda: 132)
    find_division.cache_clear()
    yield
    find_division.cache_clear()


@pytest.mark.parametrize(
    ("items", "loops", "is_gated", "expected"),
    [
        pytest.param(224, 16, True, Division(132, 224, 1), id="all are shared"),
        pytest.param(448, 16, True, Division(132, 184, 1), id="two whole items, then shared ones"),
        pytest.param(264, 16, True, Division(132, 0, 1), id="no block would be idle"),
        pytest.param(112, 16, True, Division(112, 0, 1), id="fewer items than multiprocessors"),
        pytest.param(32, 56, False, Division(128, 32, 4), id="four equal parts"),
    ],
)
def test_products_are_divided_into_equal_work(items, loops, is_gated, expected):
    assert find_division(items, loops, LOOP_FLOPS, PART, is_gated) == expected


@pytest.mark.parametrize("items", [1, 5, 48, 131, 133, 200, 300, 1000])
@pytest.mark.parametrize("loops", [1, 3, 16, 56])
@pytest.mark.parametrize("is_gated", [False, True])
def test_a_product_has_a_part_for_each_block_of_an_item(items, loops, is_gated):
    blocks, shared, parts = find_division(items, loops, LOOP_FLOPS, PART, is_gated)
    assert blocks <= 132
    assert parts == 1 or not is_gated
    edges = [shared * loops * block // blocks for block in range(blocks + 1)]
    for item in range(shared):
        first, end = item * loops, (item + 1) * loops
        sharing = sum(max(a, first) < min(b, end) for a, b in itertools.pairwise(edges))
        # Of one part, a block adds what the one before has computed.
        assert sharing <= max(parts, 2)
