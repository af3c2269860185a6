"""Machine code that MLX finds by its digest, and launches that pass it themselves."""

import os

import mlx.core as mx
import pytest
from cuda_support import needs_gpu
from mlx_vlm.models.moxin.cuda import activations, cubin_cache, device, kernel, module_files

CUBIN = b"\x7fELF" + bytes(range(256)) * 100


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """MLX's folder of compiled kernels, which is not there yet."""
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path / "mlx" / "ptx"))
    forget()
    yield tmp_path / "mlx" / "ptx"
    forget()


def forget():
    module_files._folder.cache_clear()
    module_files._are_read.cache_clear()


@pytest.fixture
def launched(folder, monkeypatch):
    """Machine code of the launches, which load kernels as MLX does."""
    found = []

    def launch(name, compiled_source, output_shapes, **options):
        file = folder / f"{name}_{module_files._hash(compiled_source):x}.ptx"
        is_file = len(compiled_source) == 8 and file.is_file()
        code = file.read_bytes() if is_file else compiled_source
        if not code.startswith(b"\x7fELF"):
            raise RuntimeError("Failed to load compiled kernel")
        assert not is_file or file.with_suffix(".txt").read_text() == f"{name}\t{name}\n"
        if name != module_files.PROBE_NAME:
            found.append((compiled_source, code))
        return [mx.array(module_files.PROBE_VALUES)]

    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", launch, raising=False)
    monkeypatch.setattr(device, "architecture", lambda: "sm_90a")
    monkeypatch.setattr(cubin_cache, "load", lambda source, architecture: CUBIN + b"probe")
    return found


def launch(cubin=CUBIN):
    kernel.Kernel("add_norm_1", cubin, {"output_shapes": [(4,)]})()


# From a C++ program with GNU's library.
@pytest.mark.parametrize(
    ("digest", "expected"),
    [(b"12345678", 0x8C5B90A33A04DCA5), (b"\0\xff\x80zzzz\0", 0x379F250AA82E4AF7)],
)
def test_the_hash_is_that_of_the_c_plus_plus_library(digest, expected):
    assert module_files._hash(digest) == expected


def test_launches_pass_a_digest_by_which_mlx_finds_the_code(launched, folder):
    for cubin in (CUBIN, CUBIN + b"another"):
        launch(cubin)
        passed, code = launched.pop()
        assert len(passed) == 8
        assert code == cubin
    assert not [path for path in folder.iterdir() if path.suffix not in (".ptx", ".txt")]


def test_a_file_with_other_content_is_replaced(launched, folder):
    launch()
    launched.clear()
    for path in folder.iterdir():
        path.write_bytes(b"damaged")
    launch()
    assert launched[0][1] == CUBIN


def test_a_file_that_is_right_is_not_written_again(launched, folder):
    launch()
    before = {path: path.stat().st_ino for path in folder.iterdir()}
    launch()
    assert {path: path.stat().st_ino for path in folder.iterdir()} == before


def fail(*arguments, **options):
    raise RuntimeError("Failed to load compiled kernel")


def give_nothing(*arguments, **options):
    return [mx.zeros(4, mx.int32)]


@pytest.mark.parametrize("probe", [fail, give_nothing])
def test_without_a_kernel_found_by_its_digest_launches_pass_the_code(
    probe, launched, monkeypatch, caplog
):
    launch_kernel = mx.fast.precompiled_cuda_kernel

    def launch_or_fail(name, **options):
        return (probe if name == module_files.PROBE_NAME else launch_kernel)(name, **options)

    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", launch_or_fail)
    launch()
    assert launched == [(CUBIN, CUBIN)]
    assert not caplog.records


def test_a_folder_that_cannot_be_written_is_no_failure(launched, folder):
    folder.parent.write_text("no folder")
    launch()
    assert launched == [(CUBIN, CUBIN)]


def test_a_failed_write_leaves_no_part(launched, folder, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("full")))
    launch()
    assert launched == [(CUBIN, CUBIN)]
    assert not list(folder.iterdir())


def test_a_folder_of_another_user_is_not_used(launched, folder, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: folder.parents[1].stat().st_uid + 1)
    launch()
    assert launched == [(CUBIN, CUBIN)]


def test_systems_without_users_pass_the_code(launched, monkeypatch):
    monkeypatch.delattr(os, "getuid")
    launch()
    assert launched == [(CUBIN, CUBIN)]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "/tmp/mlx/{}/ptx"),
        ({"TMP": "/a", "TMPDIR": "/b"}, "/b/mlx/{}/ptx"),
        ({"TEMPDIR": "/a", "TEMP": "/c"}, "/c/mlx/{}/ptx"),
        ({"TMPDIR": "/b", "MLX_PTX_CACHE_DIR": "/d"}, "/d"),
    ],
)
def test_the_folder_is_the_one_that_mlx_reads(variables, expected, folder, monkeypatch):
    for name in ("MLX_PTX_CACHE_DIR", "TMPDIR", "TMP", "TEMP", "TEMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(module_files._folder()) == expected.format(mx.__version__)


@needs_gpu
def test_mlx_finds_a_kernel_by_its_digest():
    module_files._are_read.cache_clear()
    assert module_files._are_read()
    x = mx.random.normal((512,)).astype(mx.bfloat16)
    gelu = activations.gelu_kernel(x.dtype, x.size)
    expected = gelu(x)[0]
    assert len(gelu._code) == module_files.DIGEST_BYTES
    gelu._code = gelu._cubin
    assert mx.array_equal(gelu(x)[0], expected).item()
