"""Fixtures of many tests, such as the reference checkpoint loaded by mlx-vlm."""

import functools

import hypothesis
import mlx.core as mx
import pytest
import warm_processes
from action_models import write_checkpoint
from mlx_vlm import convert, load
from mlx_vlm.models.moxin.cuda import activations, device, embeddings
from support import HF_CHECKPOINT

# Hypothesis fails tests whose examples take long, which says something of the machine only.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

# The slowest files run first: one that starts last would keep the other processes waiting.
LONG_FILES = (
    "test_install.py",
    "test_openvla_tiny.py",
    "moxin/cuda/test_kernels_compile.py",
    "moxin/cuda/test_shards.py",
    "plugin/server/test_soak.py",
    "plugin/server/test_picture_memory.py",
    "conversion/test_family.py",
    "conversion/test_convert.py",
    "conversion/verify/test_compare.py",
    "conversion/test_sweep.py",
    "conversion/test_command_line.py",
    "checkpoints/test_tensor_values.py",
    "moxin/test_family.py",
    "actions/test_training.py",
    "entry_points/test_train.py",
    "entry_points/test_train_methods.py",
    "evals/test_answering.py",
    "plugin/server/test_batching.py",
    "plugin/server/test_requests.py",
)


def _rank(item: pytest.Item) -> int:
    path = item.path.as_posix()
    return next((i for i, name in enumerate(LONG_FILES) if path.endswith(f"/{name}")), 99)


def pytest_collection_modifyitems(items):
    items.sort(key=_rank)


def pytest_sessionstart():
    warm_processes.enable()


@pytest.hookimpl(tryfirst=True)  # before pytest-cov collects what processes have written
def pytest_sessionfinish():
    warm_processes.stop()


@pytest.fixture(scope="session")
def bf16_model():
    """Model as stored (bfloat16). Tests must not change it."""
    return load(str(HF_CHECKPOINT))[0]


@pytest.fixture(scope="session")
def loaded():
    """(model in float32, processor). Tests must not change either."""
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
    """By name (openvla, oft, moxin): the HF checkpoint. Tests must not change it."""
    place = tmp_path_factory.mktemp("action_models")
    return functools.cache(lambda name: write_checkpoint(name, place / name))


@pytest.fixture
def kernels_everywhere(monkeypatch):
    """Pretend that this is an NVIDIA GPU, for tests that run no kernel."""
    attributes = {
        device.MULTIPROCESSOR_COUNT: 132,
        device.MAX_SHARED_MEMORY_PER_BLOCK: 227 * 1024,
    }
    monkeypatch.setattr(device, "enabled", lambda: True)
    monkeypatch.setattr(device, "attribute", attributes.get)
    monkeypatch.setattr(device, "memory", lambda: 80 * 10**9)
    # Small functions that are used in many places, which tests compute instead of replacing.
    monkeypatch.setattr(embeddings, "is_supported", lambda *arguments: False)
    monkeypatch.setattr(activations, "DTYPES", ())
