"""Weights are read in buffers that are used again."""

import ctypes
import subprocess
import sys

import mlx.core as mx
import pytest

from mlx_vlm_moxin.library import read_buffers

# Page faults of allocating, filling and freeing 64 MB five times: as usual, while buffers are kept,
# and as usual again.
SCRIPT = """
import contextlib, ctypes, resource
from mlx_vlm_moxin.library import read_buffers
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
read_buffers._glibc = lambda: libc
for context in (contextlib.nullcontext, read_buffers.kept, contextlib.nullcontext):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with context():
        for _ in range(5):
            buffer = libc.malloc(64 << 20)
            ctypes.memset(buffer, 1, 64 << 20)
            libc.free(ctypes.c_void_p(buffer))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)


@needs_glibc
def test_kept_buffers_are_not_mapped_again():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    usual, kept, afterwards = map(int, result.stdout.split())
    assert kept < usual / 2
    assert afterwards > kept


@pytest.mark.parametrize("is_gpu", [True, False])
def test_buffers_are_kept_only_for_a_cuda_gpu(is_gpu, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(mx.cuda, "is_available", lambda: is_gpu)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    assert (read_buffers._glibc() is not None) == is_gpu


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert read_buffers._glibc() is None
    with read_buffers.kept():
        pass


def test_settings_are_restored_after_an_error(monkeypatch):
    calls = []

    class Libc:
        def mallopt(self, *arguments):
            calls.append(arguments)

        def malloc_trim(self, pad):
            calls.append("trim")

    monkeypatch.setattr(read_buffers, "_glibc", Libc)

    def read():
        with read_buffers.kept():
            calls.clear()
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        read()
    assert (read_buffers.M_MMAP_MAX, read_buffers.DEFAULT_MMAP_MAX) in calls
    assert calls[-1] == "trim"
