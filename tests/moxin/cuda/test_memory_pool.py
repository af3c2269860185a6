"""CUDA's memory pool keeps memory that MLX frees and soon needs again."""

import contextlib
import ctypes

import pytest
from mlx_vlm.models.moxin.cuda import device, memory_pool

GIGABYTE = 1 << 30


@pytest.fixture
def limits(kernels_everywhere, monkeypatch):
    """The pool's limit after each call that sets it; it begins with 0."""
    found = [0]

    def call(name, *arguments):
        if name == "cuMemPoolGetAttribute":
            arguments[2]._obj.value = found[-1]
        elif name == "cuMemPoolSetAttribute":
            assert arguments[1] == memory_pool.RELEASE_THRESHOLD
            assert isinstance(arguments[2]._obj, ctypes.c_uint64)
            found.append(arguments[2]._obj.value)

    monkeypatch.setattr(device, "calls", lambda: contextlib.nullcontext(call))
    monkeypatch.setattr(device, "handle", lambda: ctypes.c_int(0))
    monkeypatch.setattr(device, "attribute", lambda number: 1)
    return found


@pytest.mark.parametrize(("memory", "kept"), [(140, 16), (24, 3)])
def test_the_pool_keeps_a_model_and_some_free_memory(memory, kept, limits, monkeypatch):
    monkeypatch.setattr(device, "memory", lambda: memory * GIGABYTE)
    memory_pool.keep(17 * GIGABYTE)
    assert limits == [0, (17 + kept) * GIGABYTE]


def test_a_smaller_model_lowers_no_limit(limits):
    memory_pool.keep(17 * GIGABYTE)
    memory_pool.keep(GIGABYTE)
    assert limits[1] == limits[2]


def test_nothing_changes_without_the_kernels_or_without_a_pool(limits, monkeypatch):
    monkeypatch.setattr(device, "attribute", lambda number: 0)
    memory_pool.keep(GIGABYTE)
    monkeypatch.setattr(device, "enabled", lambda: False)
    memory_pool.keep(GIGABYTE)
    assert limits == [0]


def test_a_driver_that_refuses_is_no_error(limits, monkeypatch):
    def refuse(name, *arguments):
        raise RuntimeError(f"{name}: operation not supported (801)")

    monkeypatch.setattr(device, "calls", lambda: contextlib.nullcontext(refuse))
    memory_pool.keep(GIGABYTE)
    assert limits == [0]
