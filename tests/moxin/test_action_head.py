"""The action head and the state's projector, compared with NumPy."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_vlm.models.moxin.action_head import L1ActionHead, ProprioProjector

HIDDEN, WIDTH, ACTION_DIM, CHUNK, BATCH = 6, 10, 3, 4, 2


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def fill(module: nn.Module, rng) -> dict[str, np.ndarray]:
    """Random parameters, also as arrays by name."""
    values = tree_map(
        lambda p: mx.array(rng.standard_normal(p.shape).astype(np.float32)), module.parameters()
    )
    module.update(values)
    return {name: np.array(value) for name, value in tree_flatten(module.parameters())}


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x, weights, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def test_every_action_is_computed_from_the_hidden_states_of_its_dimensions(rng):
    head = L1ActionHead(HIDDEN, WIDTH, ACTION_DIM)
    weights = fill(head, rng)
    states = rng.standard_normal((BATCH, CHUNK * ACTION_DIM, HIDDEN)).astype(np.float32)
    x = states.reshape(BATCH, CHUNK, ACTION_DIM * HIDDEN)
    x = np.maximum(linear(layer_norm(x, weights, "layer_norm1"), weights, "fc1"), 0)
    for i in range(2):
        name = f"mlp_resnet_blocks.{i}.ffn"
        block = linear(layer_norm(x, weights, f"{name}.0"), weights, f"{name}.1")
        x = x + np.maximum(block, 0)
    expected = linear(layer_norm(x, weights, "layer_norm2"), weights, "fc2")
    actions = head(mx.array(states))
    assert actions.shape == (BATCH, CHUNK, ACTION_DIM)
    np.testing.assert_allclose(np.array(actions), expected, rtol=1e-4, atol=1e-4)


def test_the_parameters_are_those_of_the_published_head():
    names = {name for name, _ in tree_flatten(L1ActionHead(HIDDEN, WIDTH, ACTION_DIM).parameters())}
    layers = ["layer_norm1", "fc1", "layer_norm2", "fc2"]
    layers += [f"mlp_resnet_blocks.{i}.ffn.{j}" for i in range(2) for j in range(2)]
    assert names == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def test_the_state_becomes_one_token_through_the_exact_gelu(rng):
    projector = ProprioProjector(ACTION_DIM, HIDDEN)
    weights = fill(projector, rng)
    state = rng.standard_normal((BATCH, ACTION_DIM)).astype(np.float32)
    x = linear(state, weights, "fc1")
    x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    token = projector(mx.array(state))
    assert token.shape == (BATCH, HIDDEN)
    np.testing.assert_allclose(np.array(token), linear(x, weights, "fc2"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module", [L1ActionHead(HIDDEN, WIDTH, ACTION_DIM), ProprioProjector(ACTION_DIM, HIDDEN)]
)
def test_all_of_it_can_be_frozen_and_trained_again(module):
    count = len(tree_flatten(module.parameters()))
    module.freeze()
    assert not tree_flatten(module.trainable_parameters())
    module.unfreeze()
    assert len(tree_flatten(module.trainable_parameters())) == count
