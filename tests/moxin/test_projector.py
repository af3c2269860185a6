"""The three kinds of projectors, compared with NumPy."""

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_vlm.models.moxin.projector import make_projector
from mlx_vlm.models.moxin.vision_config import PROJECTOR_LAYERS, ProjectorConfig

INPUT, INTERMEDIATE, OUTPUT = 5, 7, 6
WIDTHS = {
    "linear": [INPUT, OUTPUT],
    "gelu-mlp": [INPUT, OUTPUT, OUTPUT],
    "fused-gelu-mlp": [INPUT, INTERMEDIATE, OUTPUT, OUTPUT],
}


def projector(kind):
    return make_projector(
        ProjectorConfig(
            model_type=kind,
            input_size=INPUT,
            intermediate_size=INTERMEDIATE,
            output_size=OUTPUT,
        )
    )


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@pytest.mark.parametrize("kind", PROJECTOR_LAYERS)
def test_outputs_equal_linear_layers_with_the_exact_gelu_between_them(kind):
    rng = np.random.default_rng(0)
    module = projector(kind)
    module.update(
        tree_map(
            lambda p: mx.array(rng.standard_normal(p.shape).astype(np.float32)),
            module.parameters(),
        )
    )
    weights = {name: np.array(value) for name, value in tree_flatten(module.parameters())}
    features = rng.standard_normal((2, 3, INPUT)).astype(np.float32)
    x = features
    widths = list(zip(WIDTHS[kind], WIDTHS[kind][1:]))
    assert len(weights) == 2 * len(widths)
    for i, (width, output) in enumerate(widths, start=1):
        assert weights[f"fc{i}.weight"].shape == (output, width)
        x = (gelu(x) if i > 1 else x) @ weights[f"fc{i}.weight"].T + weights[f"fc{i}.bias"]
    tokens = module(mx.array(features))
    np.testing.assert_allclose(np.array(tokens), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PROJECTOR_LAYERS)
def test_all_of_it_can_be_frozen_and_trained_again(kind):
    module = projector(kind)
    count = len(tree_flatten(module.parameters()))
    module.freeze()
    assert not tree_flatten(module.trainable_parameters())
    module.unfreeze()
    assert len(tree_flatten(module.trainable_parameters())) == count
