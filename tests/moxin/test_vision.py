"""Outside training the towers' graph is compiled; their behaviour stays the same."""

import copy
import gc

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_vlm.models.moxin.config import VisionConfig
from mlx_vlm.models.moxin.vision import VisionModel

TOWER = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def towers():
    mx.random.seed(0)
    dino = {**TOWER, "num_register_tokens": 2, "class_token": True, "layer_scale": True}
    model = VisionModel(VisionConfig(image_size=28, dino=dino, siglip=TOWER))
    model.update(tree_map(lambda p: p + 0.1 * mx.random.normal(p.shape), model.parameters()))
    model.eval()
    return model


@pytest.fixture
def pixel_values():
    return mx.random.normal((2, 6, 28, 28), key=mx.random.key(2))


def test_features_are_the_same_compiled_and_not(towers, pixel_values):
    compiled = towers(pixel_values)
    assert compiled.shape == (2, 4, 128)
    towers.train()
    np.testing.assert_allclose(compiled, towers(pixel_values), **CLOSE)


def test_any_number_of_pictures_may_follow_the_first_call(towers, pixel_values):
    towers(pixel_values)
    first = towers(pixel_values[:1])
    np.testing.assert_allclose(first, towers(pixel_values)[:1], **CLOSE)


def test_weights_may_change_after_the_first_call(towers, pixel_values):
    before = towers(pixel_values)
    towers.update(tree_map(lambda p: 1.1 * p, towers.parameters()))
    after = towers(pixel_values)
    assert not mx.allclose(before, after, atol=1e-3)
    towers.train()
    np.testing.assert_allclose(after, towers(pixel_values), **CLOSE)


def test_the_dtype_may_change_after_the_first_call(towers, pixel_values):
    towers(pixel_values)
    towers.set_dtype(mx.bfloat16)
    assert towers(pixel_values).dtype == mx.bfloat16


def test_gradients_are_the_same_compiled_and_not(towers, pixel_values):
    def loss(pixels):
        return towers(pixels).square().sum()

    towers(pixel_values)
    _, compiled = nn.value_and_grad(towers, loss)(pixel_values)
    towers.train()
    _, plain = nn.value_and_grad(towers, loss)(pixel_values)
    for (name, value), (_, expected) in zip(tree_flatten(compiled), tree_flatten(plain)):
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-3, err_msg=name)


def test_a_copy_of_a_model_that_has_run_is_independent(towers, pixel_values):
    before = towers(pixel_values)
    other = copy.deepcopy(towers)
    other.update(tree_map(mx.zeros_like, other.parameters()))
    assert not other(pixel_values).any()
    np.testing.assert_allclose(towers(pixel_values), before, **CLOSE)


def test_a_deleted_model_frees_its_memory_at_once(pixel_values):
    gc.collect()
    gc.disable()
    try:
        before = mx.get_active_memory()
        model = VisionModel(VisionConfig(image_size=28, dino=TOWER, siglip=TOWER))
        model.eval()
        mx.eval(model.parameters(), model(pixel_values))
        held = mx.get_active_memory() - before
        del model
        assert held > 100_000
        assert mx.get_active_memory() - before < held / 10
    finally:
        gc.enable()
