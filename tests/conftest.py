"""Fixtures of many tests, such as the reference checkpoint loaded by mlx-vlm."""

import functools

import mlx.core as mx
import pytest
from action_models import write_checkpoint
from mlx_vlm import convert, load
from mlx_vlm.models.moxin.cuda import device
from support import HF_CHECKPOINT


@pytest.fixture(scope="session")
def bf16_model():
    """Model as stored (bfloat16). Tests must leave it as it is."""
    return load(str(HF_CHECKPOINT))[0]


@pytest.fixture(scope="session")
def loaded():
    """(model in float32, processor). Tests must leave both as they are."""
    model, processor = load(str(HF_CHECKPOINT))
    model.set_dtype(mx.float32)
    return model, processor


@pytest.fixture(scope="session")
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="session")
def processor(loaded):
    return loaded[1]


@pytest.fixture(scope="session")
def fp32_checkpoint(tmp_path_factory):
    """The reference checkpoint converted to float32 by stock mlx-vlm."""
    path = tmp_path_factory.mktemp("fp32") / "checkpoint"
    convert(str(HF_CHECKPOINT), str(path), dtype="float32", trust_remote_code=False)
    return path


@pytest.fixture(scope="session")
def action_checkpoint(tmp_path_factory):
    """By name (openvla, oft, moxin): the HF checkpoint. Tests must leave it as it is."""
    place = tmp_path_factory.mktemp("action_models")
    return functools.cache(lambda name: write_checkpoint(name, place / name))


@pytest.fixture
def kernels_everywhere(monkeypatch):
    """As if this were an NVIDIA GPU, for what does not run a kernel."""
    attributes = {
        device.MULTIPROCESSOR_COUNT: 132,
        device.MAX_SHARED_MEMORY_PER_BLOCK: 227 * 1024,
    }
    monkeypatch.setattr(device, "enabled", lambda: True)
    monkeypatch.setattr(device, "attribute", attributes.get)
    monkeypatch.setattr(device, "memory", lambda: 80 * 10**9)
