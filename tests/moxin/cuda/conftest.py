"""NVIDIA's compiler without a GPU, and cached kernels that are dropped after each test."""

import ctypes
from importlib.util import find_spec
from pathlib import Path

import pytest
from cuda_support import forget_kernels
from mlx_vlm.models.moxin.cuda import device, nvrtc


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
