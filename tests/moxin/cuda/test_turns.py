"""Kernels with a grid barrier never run in two streams at once."""

import threading

import mlx.core as mx
import pytest
from mlx_vlm.models.moxin.cuda.turns import _Turns


@pytest.fixture
def awaited(monkeypatch):
    """Arrays that were waited for."""
    arrays = []
    monkeypatch.setattr(mx, "eval", arrays.append)
    return arrays


def test_a_launch_in_another_stream_waits_for_the_last_one(awaited):
    turn, outputs = _Turns(), [mx.zeros(1), mx.zeros(1), mx.zeros(1)]
    streams = [mx.new_stream(mx.default_device()) for _ in range(2)]
    for stream, output in zip((streams[0], streams[0], streams[1]), outputs):
        with mx.stream(stream), turn() as launched:
            launched(output)
    assert [id(array) for array in awaited] == [id(outputs[1])]


def test_one_thread_at_a_time_launches():
    turn, order, inside = _Turns(), [], threading.Event()

    def second():
        inside.wait(10)
        with turn():
            order.append("second")

    other = threading.Thread(target=second)
    other.start()
    with turn():
        inside.set()
        other.join(0.2)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
