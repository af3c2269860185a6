"""The guide's memory tables are those computed from the shapes."""

from pathlib import Path

import pytest
from comparing import size
from support import HF_CHECKPOINT, run_module, run_python

from mlx_vlm_moxin import load
from mlx_vlm_moxin.library import sizes

GUIDE = Path(__file__).parents[2] / "docs" / "quantisation.md"


@pytest.mark.parametrize(
    "settings", [(None, 64, "affine"), (8, 64, "affine"), (3, 32, "affine"), (4, 32, "mxfp4")]
)
def test_the_size_from_shapes_is_that_of_a_loaded_model(settings):
    model, _ = load(HF_CHECKPOINT, *(settings if settings[0] else ()))
    assert sum(sizes.part_bytes(model.config, *settings).values()) == size(model)


def test_the_real_models_parameters_are_those_that_its_makers_count():
    numbers = sizes.part_parameters()
    decoder = sum(numbers[part] for part in sizes.QUANTIZED_PARTS) + numbers["token embeddings"]
    assert round(decoder / 1e9, 2) == 8.11
    assert round(numbers["projector"] / 1e9, 2) == 0.07
    assert all(numbers.values())


def test_only_the_decoder_and_the_head_shrink():
    whole, packed = sizes.part_bytes(), sizes.part_bytes(bits=8)
    assert {part for part in whole if packed[part] < whole[part]} == {*sizes.QUANTIZED_PARTS}


def test_eight_bits_with_group_size_64_store_eight_and_a_half_bits_per_weight():
    head = "output head"
    assert sizes.part_bytes(bits=8)[head] * 8 == sizes.part_parameters()[head] * 8.5


def test_the_cache_needs_two_bytes_per_key_and_value():
    # 36 layers, 8 heads of 128 numbers, keys and values.
    assert sizes.cache_bytes() == 36 * 8 * 128 * 2 * 2


@pytest.mark.slow
def test_the_guide_has_the_tables_as_they_are_computed():
    text = GUIDE.read_text(encoding="utf-8")
    for table in sizes.tables().split("\n\n"):
        assert table in text


@pytest.mark.slow
def test_sizes_of_many_models_leave_random_numbers_usable():
    code = """
import mlx.core as mx
from mlx_vlm_moxin import register
register()
from mlx_vlm_moxin.library import sizes
for _ in range(60):
    sizes.part_parameters()
weight = mx.random.uniform(shape=(2, 2))
mx.eval(mx.value_and_grad(lambda w: (w * weight).sum())(weight))
print("computed")
"""
    assert run_python(code).strip() == "computed"


@pytest.mark.slow
def test_the_command_prints_the_tables_and_refuses_options():
    command = "mlx_vlm_moxin.library.sizes"
    assert run_module(command).stdout == sizes.tables() + "\n"
    result = run_module(command, "--bits", "99")
    assert result.returncode == 2
    assert "unrecognized arguments: --bits 99" in result.stderr
