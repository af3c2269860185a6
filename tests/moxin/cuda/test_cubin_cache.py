"""Compiled kernels on disk: when they are reused, and how damaged ones are handled."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlx_vlm.models.moxin.cuda import cubin_cache, device, nvrtc
from warm_processes import command as warm_command
from warm_processes import offline

SOURCE = 'extern "C" __global__ void k(int* x) { *x = 1; }'


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Sources that were compiled; the bytes of the source replace the machine code."""
    calls = []

    def compile_source(source, architecture):
        calls.append((source, architecture))
        return source.encode() * 100

    monkeypatch.setattr(nvrtc, "compile_source", compile_source)
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(device, "driver_version", lambda: 13000)
    monkeypatch.setattr(device, "name", lambda: "NVIDIA H200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    start_process()
    return calls


def start_process():
    """As if the process had just started."""
    cubin_cache._futures.clear()
    cubin_cache._announced.clear()


def test_a_kernel_is_compiled_once(compiled, capfd):
    first = cubin_cache.load(SOURCE, "sm_90")
    assert cubin_cache.load(SOURCE, "sm_90") == first
    cubin_cache.load("other", "sm_90")
    assert capfd.readouterr().err == "compiling kernels for NVIDIA H200, once\n"
    start_process()
    assert cubin_cache.load(SOURCE, "sm_90") == first
    assert len(compiled) == 2
    assert capfd.readouterr().err == ""


def test_threads_that_need_the_same_kernel_wait_for_one(compiled):
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: cubin_cache.load(SOURCE, "sm_90"), range(32)))
    assert len(set(results)) == len(compiled) == 1


@pytest.mark.parametrize("change", ["source", "architecture", "driver", "compiler", "headers"])
def test_what_the_machine_code_depends_on_is_in_its_name(change, compiled, monkeypatch):
    cubin_cache.load(SOURCE, "sm_90")
    start_process()
    if change == "driver":
        monkeypatch.setattr(device, "driver_version", lambda: 13010)
    if change == "compiler":
        monkeypatch.setattr(nvrtc, "version", lambda: (13, 1))
    if change == "headers":
        sources = nvrtc.sources() | {"grid.cuh": "changed"}
        monkeypatch.setattr(nvrtc, "sources", lambda: sources)
    source = SOURCE + " " if change == "source" else SOURCE
    cubin_cache.load(source, "sm_100" if change == "architecture" else "sm_90")
    assert len(compiled) == 2


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_file_is_compiled_again(damage, compiled):
    expected = cubin_cache.load(SOURCE, "sm_90")
    (file,) = cubin_cache.folder().glob("*.cubin")
    content = file.read_bytes()
    file.write_bytes(content[:-1] if damage is None else damage)
    start_process()
    assert cubin_cache.load(SOURCE, "sm_90") == expected
    assert len(compiled) == 2
    assert file.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_no_failure(compiled, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cubin_cache.load(SOURCE, "sm_90")


def test_a_failure_is_reported_to_every_caller_and_nothing_is_kept(compiled, monkeypatch):
    def fail(source, architecture):
        raise RuntimeError("does not compile")

    monkeypatch.setattr(nvrtc, "compile_source", fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not compile"):
            cubin_cache.load(SOURCE, "sm_90")
    assert not list(cubin_cache.folder().glob("*"))


def test_the_oldest_files_are_removed(compiled, monkeypatch):
    monkeypatch.setattr(cubin_cache, "MAX_FILES", 2)
    for age, source in enumerate(("newest", "middle", "oldest")):
        cubin_cache.load(source, "sm_90")
        newest = max(cubin_cache.folder().glob("*.cubin"), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (10**9 - age, 10**9 - age))
    start_process()
    compiled.clear()
    cubin_cache.load("newest", "sm_90")
    assert not compiled
    assert len(list(cubin_cache.folder().glob("*.cubin"))) == 2


def test_processes_that_start_together_read_whole_files(tmp_path):
    code = """
import os, sys
os.environ["XDG_CACHE_HOME"] = sys.argv[1]
from mlx_vlm.models.moxin.cuda import cubin_cache, device, nvrtc
nvrtc.version = lambda: (13, 0)
nvrtc.compile_source = lambda source, architecture: source.encode() * 100_000
device.driver_version, device.name = (lambda: 13000), (lambda: "a GPU")
for index in range(20):
    assert cubin_cache.load(f"kernel {index}", "sm_90") == f"kernel {index}".encode() * 100_000
"""
    environment = offline(os.environ)
    command = warm_command("-c", code, tmp_path, environment=environment)
    started = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    folder = tmp_path / "mlx-vlm-moxin" / "kernels"
    assert len(list(folder.glob("*.cubin"))) == 20
    assert not list(folder.glob("*.part"))
