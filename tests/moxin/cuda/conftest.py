"""NVIDIA's compiler without a GPU, kernels that are dropped after each test, and MLX instead."""

import ctypes
import gc
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import computing_on, forget_kernels
from mlx_vlm.models.moxin.cuda import device, fused_prompt, fused_step, nvrtc


@pytest.fixture(scope="session")
def compiler():
    """NVIDIA's run-time compiler, from its wheel if MLX has not loaded it."""
    nvrtc.library.cache_clear()
    if nvrtc.library() is None:
        nvrtc.library.cache_clear()
        folder = Path(next(iter(find_spec("nvidia").submodule_search_locations))) / "cu13" / "lib"
        for name in ("libnvrtc-builtins.so.*", "libnvrtc.so.*"):
            ctypes.CDLL(str(next(folder.glob(name))))
    return nvrtc.library()


@pytest.fixture
def kernels_everywhere(kernels_everywhere):
    forget_kernels()
    yield kernels_everywhere
    forget_kernels()


@pytest.fixture
def on_hopper(kernels_everywhere, monkeypatch):
    """Pretend that this is a GPU of compute capability 9.0."""
    monkeypatch.setattr(device, "has_warpgroups", lambda: True)


@pytest.fixture
def on_cpu():
    """MLX computes on the CPU: GPUs multiply float32 with reduced precision."""
    with computing_on(mx.cpu):
        yield


@pytest.fixture
def kernels_in_mlx(on_cpu, kernels_everywhere, monkeypatch):
    """The decoder's kernels in MLX, also in float32, so that the code around them can be compared.

    All passes use the kernels of ``layerwise``.
    """
    plain_kernels.use(monkeypatch)
    for fused in (fused_step.FusedStep, fused_prompt.FusedPrompt):
        monkeypatch.setattr(fused, "supports", lambda *arguments: False)


@pytest.fixture
def without_collector():
    """Nothing is freed by Python's garbage collector, which runs once before."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
