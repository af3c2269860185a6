"""The doctor: its report for a complete installation, and each fault with its advice."""

import json
import shutil
import subprocess
from collections import namedtuple

import mlx.core as mx
import pytest
from mlx_vlm.models.moxin.cuda import cubin_cache, device
from moxin_tiny.demo import QUESTIONS
from support import run_module

from mlx_vlm_moxin.doctor import installation, machine, self_test
from mlx_vlm_moxin.doctor.__main__ import examine, main
from mlx_vlm_moxin.doctor.check import FAILED, OK, WARNING, Check, run
from mlx_vlm_moxin.library import memory
from mlx_vlm_moxin.library.memory import Memory

GB = 10**9
NAMES = [
    "mlx-vlm-moxin",
    "mlx-vlm",
    "transformers",
    "mlx-lm",
    "mlx",
    "start-up file",
    "model package",
    "memory",
    "disk",
    "CUDA kernels",
    "self-test",
]


def test_a_complete_installation_has_no_faults():
    result = run_module("mlx_vlm_moxin", "doctor", "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 0, report
    assert report["ok"]
    assert [check["name"] for check in report["checks"]] == NAMES
    values = {check["name"]: check["values"] for check in report["checks"]}
    assert values["start-up file"]["active"]
    assert values["self-test"]["answer"] == values["self-test"]["expected"]
    assert values["mlx-vlm"]["tested"] == ">=0.7.9,<0.8"


def test_switched_off_it_says_so_and_ends_with_status_1():
    result = run_module("mlx_vlm_moxin", "doctor", env={"MLX_VLM_MOXIN_DISABLE": "1"})
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    assert "switched off by the environment" in result.stdout
    assert "unset MLX_VLM_MOXIN_DISABLE" in result.stdout
    assert result.stdout.splitlines()[-1] == "Failed: start-up file, model package"


def test_the_screen_shows_advice_and_the_status_is_0_with_warnings(monkeypatch, capsys):
    checks = [Check("disk", WARNING, "full", "free some space"), Check("mlx", OK, "fine")]
    monkeypatch.setattr("mlx_vlm_moxin.doctor.__main__.examine", lambda: checks)
    assert main([]) == 0
    first, advice, second, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["warning", "disk", "full"]
    assert advice.strip() == "-> free some space"
    assert second.split() == ["ok", "mlx", "fine"]
    assert last == "All is well."
    checks.append(Check("self-test", FAILED, "wrong"))
    assert main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize(
    ("name", "tested", "status", "advice"),
    [
        ("mlx-vlm", ">=0.7.9,<0.8", OK, ""),
        ("mlx-vlm", ">=0.9", FAILED, 'pip install "mlx-vlm>=0.9"'),
        ("no-such-package", ">=1", FAILED, 'pip install "no-such-package>=1"'),
    ],
)
def test_a_version_out_of_the_tested_range_fails(name, tested, status, advice):
    check = installation.check_version(name, tested)
    assert (check.status, check.advice) == (status, advice)


def test_mlx_lm_may_be_missing(monkeypatch):
    monkeypatch.setattr(installation, "installed", lambda name: None)
    assert installation.check_version("mlx-lm", ">=0.31").status == OK


def test_two_backends_at_once_fail(monkeypatch):
    monkeypatch.setattr(installation, "installed", lambda name: "1" if "cpu" in name else None)
    assert installation.backend().status == OK
    monkeypatch.setattr(installation, "installed", lambda name: "1")
    check = installation.backend()
    assert check.status == FAILED
    assert "they share files" in check.advice


def test_a_start_up_file_that_is_not_read_fails(monkeypatch):
    def none(*args, **kwargs):
        return subprocess.CompletedProcess(args, 1)

    monkeypatch.setattr(installation.subprocess, "run", none)
    check = installation.start_up()
    assert check.status == FAILED
    assert "python -m mlx_vlm_moxin generate" in check.advice


def test_without_the_model_nothing_else_is_checked(monkeypatch):
    def broken():
        raise RuntimeError("mlx-vlm has no\nload_model")

    monkeypatch.setattr(installation, "model_package", broken)
    checks = examine()
    assert [check.name for check in checks] == NAMES[: NAMES.index("memory")]
    assert checks[-1].found == "RuntimeError: mlx-vlm has no load_model"


@pytest.mark.parametrize(
    ("found", "status", "text"),
    [
        (Memory(64 * GB, 32 * GB), OK, "64.00 GB, 32.00 GB free: Moxin-7B fits at bfloat16"),
        (Memory(64 * GB, 10 * GB), OK, "Moxin-7B fits at 6 bits"),
        (Memory(12 * GB, None), OK, "12.00 GB: Moxin-7B fits at 6 bits"),
        (Memory(64 * GB, GB), WARNING, "no width of Moxin-7B fits"),
    ],
)
def test_the_width_that_fits_the_free_memory_is_named(monkeypatch, found, status, text):
    monkeypatch.setattr(memory, "device_memory", lambda: found)
    check = machine.memory()
    assert check.status == status
    assert text in check.found


@pytest.mark.parametrize(
    ("free", "status", "text"),
    [(9 * GB, OK, "fits at 6 bits and narrower"), (GB, WARNING, "no width of Moxin-7B fits")],
)
def test_the_width_that_fits_the_disk_is_named(monkeypatch, free, status, text):
    usage = namedtuple("usage", "total used free")(100 * GB, 0, free)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: usage)
    check = machine.disk()
    assert check.status == status
    assert text in check.found


def test_the_reason_is_named_where_kernels_are_off(monkeypatch):
    assert machine.kernels().found == "off: MLX computes on the CPU"
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "reason_off", lambda: "MLX_VLM_MOXIN_KERNELS=0 is set")
    check = machine.kernels()
    assert check.status == WARNING
    assert check.found.startswith("off: MLX_VLM_MOXIN_KERNELS=0 is set; compiled on disk: ")


def test_kernels_that_run_say_what_has_been_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "reason_off", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_CACHE_PATH", str(tmp_path / "driver"))
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path / "none"))
    nothing = "on; compiled on disk: nothing yet, so the first run takes longer"
    assert machine.kernels().found == nothing
    (tmp_path / "driver").mkdir()
    assert machine.kernels().found == nothing
    (tmp_path / "driver" / "index").write_bytes(b"1234")
    cubin_cache._write(cubin_cache.folder() / "first.cubin", b"12345678")
    cubin_cache._write(cubin_cache.folder() / "second.cubin", b"12345678")
    check = machine.kernels()
    assert check.found == (
        f"on; compiled on disk: 2 files (80 bytes) in {tmp_path}/mlx-vlm-moxin/kernels, "
        f"1 file (4 bytes) in {tmp_path}/driver"
    )
    kept = check.values["compiled"]
    assert kept[str(cubin_cache.folder())] == {"files": 2, "bytes": 80}
    assert kept[str(tmp_path / "driver")] == {"files": 1, "bytes": 4}


def test_the_reason_follows_the_switch(monkeypatch):
    monkeypatch.setenv(device.SWITCH, "0")
    assert device.reason_off() == "MLX_VLM_MOXIN_KERNELS=0 is set"
    monkeypatch.delenv(device.SWITCH)
    assert device.reason_off() == "MLX computes on the CPU"
    assert not device.enabled()


def test_the_self_test_knows_the_bundled_models_answer():
    assert (self_test.QUESTION, self_test.ANSWER) in QUESTIONS


def test_a_model_that_answers_wrongly_fails(monkeypatch, tmp_path):
    folder = shutil.copytree(self_test.bundled(), tmp_path / "moxin_tiny")
    weights = mx.load(str(folder / "checkpoint" / "model.safetensors"))
    name = next(name for name in weights if name.endswith("lm_head.weight"))
    weights[name] = -weights[name]
    mx.save_safetensors(str(folder / "checkpoint" / "model.safetensors"), weights)
    monkeypatch.setattr(self_test, "_PLACES", (folder,))
    check = self_test.self_test()
    assert check.status == FAILED
    assert f"instead of {self_test.ANSWER!r}" in check.found


def test_a_missing_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(self_test, "_PLACES", (tmp_path,))
    assert "moxin-tiny is missing" in run("self-test", self_test.self_test).found
