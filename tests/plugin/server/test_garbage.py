"""Collecting garbage, which mlx-vlm does after answers, does not stop the server for long."""

from types import SimpleNamespace

from support import run_python

from mlx_vlm_moxin.plugin.server import garbage


def test_what_was_imported_is_not_looked_at():
    code = """
import gc
import mlx_vlm.server, mlx_vlm.models.moxin
print(gc.get_freeze_count(), len(gc.get_objects()))
"""
    frozen, others = map(int, run_python(code).split()[-2:])
    assert frozen > 10 * others


def test_endpoints_collect_at_intervals(monkeypatch):
    now, collected = [5.0], []
    monkeypatch.setattr(garbage, "time", SimpleNamespace(monotonic=lambda: now[0]))
    original = SimpleNamespace(collect=lambda: collected.append(now[0]) or 7, enable=print)
    endpoints = garbage.gc_of_endpoints(original)
    assert endpoints.enable is print
    assert endpoints.collect() == 7
    for now[0] in (5.5, 5.0 + garbage.INTERVAL, 5.1 + garbage.INTERVAL):
        endpoints.collect()
    assert collected == [5.0, 5.0 + garbage.INTERVAL]
