"""What fits into a machine's memory, and the warning before loading more than that."""

import logging

import mlx_vlm
import pytest
from mlx_vlm.models.moxin import ModelConfig
from support import HF_CHECKPOINT

from mlx_vlm_moxin import load
from mlx_vlm_moxin.checkpoints.published import MOXIN_7B
from mlx_vlm_moxin.library import memory
from mlx_vlm_moxin.library.memory import Memory, device_memory, fits, too_large, width_sizes

GB = 10**9


@pytest.mark.parametrize(
    ("gigabytes", "advice"),
    [
        pytest.param(16, "8 bits (", marks=pytest.mark.slow),
        pytest.param(10, "6 bits (", marks=pytest.mark.slow),
        pytest.param(9, "5 bits", marks=pytest.mark.slow),
        (7.5, "4 bits"),
        pytest.param(2, "No width of this model fits", marks=pytest.mark.slow),
    ],
)
def test_the_widest_that_fits_is_named(gigabytes, advice):
    bfloat16 = width_sizes(MOXIN_7B)[None]
    assert round(bfloat16 / GB, 1) == 17.7
    warning = too_large(bfloat16, MOXIN_7B, Memory(gigabytes * GB, None))
    assert "The weights take 17.75 GB" in warning
    assert advice in warning


def test_nothing_is_said_of_what_fits():
    assert too_large(17 * GB, MOXIN_7B, Memory(24 * GB, None)) is None


def test_the_memory_of_this_machine_is_known():
    found = device_memory()
    assert found.total > GB
    assert found.free is None or 0 < found.free <= found.total


def test_a_container_has_what_it_may_have(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", limit)
    monkeypatch.setattr(memory.mx, "device_info", dict)
    limit.write_text("max\n")
    assert device_memory().total > GB
    limit.write_text("1000000000\n")
    assert device_memory().total == GB


@pytest.mark.parametrize("read", [load, lambda path: mlx_vlm.load(str(path))])
def test_a_load_that_exceeds_the_memory_warns_before_weights_are_read(read, monkeypatch, caplog):
    sizes = width_sizes(ModelConfig.from_dict({**_config(), "model_type": "prismatic"}))
    assert not fits(sizes[None], 1000)
    monkeypatch.setattr(memory, "device_memory", lambda: Memory(1000, None))
    with caplog.at_level(logging.WARNING):
        read(HF_CHECKPOINT)
    assert "and 1.00 kB of memory can be used here" in caplog.text


def test_a_load_that_quantises_warns_of_the_result(monkeypatch, caplog):
    whole = sum(memory.part_bytes(load(HF_CHECKPOINT, lazy=True)[0].config).values())
    monkeypatch.setattr(memory, "device_memory", lambda: Memory(int(whole / 0.85) - 1000, None))
    with caplog.at_level(logging.WARNING):
        load(HF_CHECKPOINT, quantize=8)
        assert "of memory can be used here" not in caplog.text
        load(HF_CHECKPOINT)
    assert "8 bits" in caplog.text


def _config() -> dict:
    import json

    return json.loads((HF_CHECKPOINT / "config.json").read_text(encoding="utf-8"))
