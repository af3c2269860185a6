"""Action models in float32, loaded once."""

import functools

import mlx.core as mx
import pytest

from mlx_vlm_moxin import load
from mlx_vlm_moxin.checkpoints.action_options import ActionOptions


@pytest.fixture(scope="session")
def action_model(action_checkpoint):
    """(model in float32, processor) by name and number of cameras. Tests must not change them."""

    @functools.cache
    def loaded(name: str, num_images: int = 1):
        options = None
        if name != "openvla":
            options = ActionOptions(preset="libero", num_images=num_images)
        model, processor = load(action_checkpoint(name), actions=options)
        model.set_dtype(mx.float32)
        return model, processor

    return loaded
