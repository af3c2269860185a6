"""When the kernels are switched off, and how their failures are handled."""

import ctypes
import logging

import mlx.core as mx
import pytest
from cuda_support import empty, filled, filled_cache, make_decoder
from mlx_vlm.models.moxin.cuda import cubin_cache, device, kernel, nvrtc
from mlx_vlm.models.moxin.cuda.errors import UnsupportedError
from test_towers import make_model

H200 = {
    "device_name": "NVIDIA H200",
    "architecture": "sm_90",
    "compute_capability_major": 9,
    "pci_bus_id": "0000:00:00.0",
}


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that MLX runs on an H200, without running kernels."""
    info = dict(H200)
    attributes = {
        device.MULTIPROCESSOR_COUNT: 132,
        device.MAX_SHARED_MEMORY_PER_BLOCK: 227 * 1024,
        device.MPS_ENABLED: 0,
    }
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(nvrtc, "library", lambda: object())
    monkeypatch.setattr(device, "attribute", attributes.get)
    monkeypatch.setattr(device, "_failures", [])
    forget_gpu()
    yield info, attributes
    forget_gpu()


def forget_gpu():
    device.architecture.cache_clear()
    device.unsupported.cache_clear()


def test_the_kernels_are_on_by_default(gpu):
    assert device.enabled()
    assert device.architecture() == "sm_90a"
    assert device.has_warpgroups()


def test_an_environment_variable_switches_them_off(gpu, monkeypatch):
    monkeypatch.setenv("MLX_VLM_MOXIN_KERNELS", "0")
    assert not device.enabled()


def test_the_cpu_as_default_device_switches_them_off(gpu, monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    assert not device.enabled()


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0"])
def test_untested_versions_of_mlx_switch_the_kernels_off(version, gpu, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, device.logger.name)
    monkeypatch.setattr(device, "version", lambda name: version)
    assert not device.enabled()
    assert not device.enabled()
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert f"MLX {version}" in record.getMessage()


def test_old_gpus_shared_gpus_and_a_missing_compiler_switch_the_kernels_off(gpu, monkeypatch):
    info, attributes = gpu
    info["compute_capability_major"] = 7
    assert not device.enabled()
    info["compute_capability_major"] = 9
    attributes[device.MPS_ENABLED] = 1
    forget_gpu()
    assert not device.enabled()
    attributes[device.MPS_ENABLED] = 0
    monkeypatch.setattr(nvrtc, "library", lambda: None)
    forget_gpu()
    assert not device.enabled()


def fail(*arguments, **options):
    raise RuntimeError("cuModuleLoadData: no kernel image is available (209)")


@pytest.mark.parametrize("length", [1, 5, 100])
def test_after_a_failure_mlx_computes_the_same_with_one_warning(
    length, kernels_everywhere, monkeypatch, caplog
):
    monkeypatch.setattr(device, "_failures", [])
    monkeypatch.setattr(device, "enabled", lambda: not device._failures)
    monkeypatch.setattr(kernel, "build", fail)
    model, ids = make_decoder(), mx.ones((1, length), mx.int32)
    weights = {name: mx.array(x) for name, x in model.lm_head.items()}
    cache, modules = filled_cache(10), filled_cache(10)
    actual = model(ids, cache=cache).logits
    assert device._failures
    again = model(ids, cache=filled_cache(10)).logits
    expected = model(ids, cache=modules).logits
    assert mx.array_equal(actual, expected).item()
    assert mx.array_equal(again, expected).item()
    for layer, other in zip(cache, modules):
        assert mx.array_equal(filled(layer, "keys"), filled(other, "keys")).item()
    assert all(mx.array_equal(model.lm_head[name], x).item() for name, x in weights.items())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no kernel image is available" in record.getMessage()


def test_towers_are_computed_by_mlx_after_a_failure(kernels_everywhere, monkeypatch, caplog):
    monkeypatch.setattr(device, "_failures", [])
    monkeypatch.setattr(device, "enabled", lambda: not device._failures)
    monkeypatch.setattr(kernel, "build", fail)
    model, pixels = make_model(), mx.ones((1, 6, 140, 140))
    actual = model(pixels)
    assert mx.array_equal(actual, model(pixels)).item()
    assert len(caplog.records) == 1


def test_memory_that_runs_out_is_no_failure_of_the_kernels(kernels_everywhere, monkeypatch):
    def exhaust(*arguments, **options):
        raise RuntimeError("[malloc] Unable to allocate 1 bytes")

    monkeypatch.setattr(device, "_failures", [])
    monkeypatch.setattr(kernel, "build", exhaust)
    with pytest.raises(RuntimeError, match="Unable to allocate"):
        make_decoder()(mx.ones((1, 5), mx.int32), cache=empty())
    assert not device._failures


def test_a_grid_that_does_not_fit_at_once_is_not_launched(kernels_everywhere, monkeypatch):
    """Its barrier would wait forever."""
    monkeypatch.setattr(device, "architecture", lambda: "sm_90")
    monkeypatch.setattr(device, "resident_blocks", lambda *arguments: 131)
    monkeypatch.setattr(cubin_cache, "load", lambda source, architecture: b"cubin")
    arguments = "fused_step", {}, [], {}, {}
    with pytest.raises(UnsupportedError, match="does not fit"):
        kernel.build(*arguments, blocks=132, threads=512, waits=True)
    assert kernel.build(*arguments, blocks=132, threads=512)
    assert kernel.build(*arguments, blocks=131, threads=512, waits=True)


class Driver:
    """A driver whose calls all fail."""

    def __getattr__(self, name):
        if name == "cuGetErrorString":

            def describe(code, text):
                ctypes.cast(text, ctypes.POINTER(ctypes.c_char_p))[0] = b"not permitted"

            return describe
        return lambda *arguments: 800


def test_codes_of_the_driver_are_checked(monkeypatch):
    monkeypatch.setattr(device, "_driver", Driver)
    monkeypatch.setattr(mx, "device_info", lambda: H200)
    device.handle.cache_clear()
    with pytest.raises(RuntimeError, match="cuInit: not permitted"):
        device.handle()
    monkeypatch.setattr(device, "handle", lambda: ctypes.c_int(0))
    with pytest.raises(RuntimeError, match="cuDeviceGetAttribute: not permitted"):
        device.attribute.__wrapped__(16)
    with pytest.raises(RuntimeError, match="cuDevicePrimaryCtx"):
        device.resident_blocks.__wrapped__(b"", "k", 32, 0)
