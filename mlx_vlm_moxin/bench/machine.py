"""The machine's limits: read bandwidth and matrix FLOP/s that MLX reaches."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

ROUNDS = 5


@dataclass(frozen=True)
class Machine:
    """The machine of a run.

    Attributes:
        name: device and operating system, for display.
        bandwidth: bytes per second read by a reduction.
        flops: bfloat16 FLOP/s of a large matrix product.
    """

    name: str
    bandwidth: float
    flops: float


def seconds(run: Callable[[], mx.array]) -> float:
    """Wall time in seconds of evaluating the array that ``run`` returns."""
    mx.synchronize()
    start = time.perf_counter()
    mx.eval(run())
    mx.synchronize()
    return time.perf_counter() - start


def _best(run: Callable[[], mx.array]) -> float:
    seconds(run)
    return min(seconds(run) for _ in range(ROUNDS))


def device_name() -> str:
    """For example ``Apple M3 Max, macOS 15.1`` or ``CPU (x86_64), Linux 6.1``."""
    system = f"{platform.system()} {platform.release()}"
    if mx.default_device() == mx.cpu:
        return f"CPU ({platform.machine()}), {system}"
    return f"{mx.device_info().get('device_name', 'GPU')}, {system}"


def probe() -> Machine:
    """Measure the machine; needs a few seconds and at most 4 GB of memory."""
    on_cpu = mx.default_device() == mx.cpu
    data = mx.ones((1 << (26 if on_cpu else 30),), mx.float32)
    side = 512 if on_cpu else 8192
    # Random values: matrix products of constants run at higher clocks than those of real data.
    left, right = (mx.random.normal((side, side)).astype(mx.bfloat16) for _ in range(2))
    mx.eval(data, left, right)
    bandwidth = data.nbytes / _best(lambda: mx.max(data))
    flops = 2 * side**3 / _best(lambda: left @ right)
    return Machine(device_name(), bandwidth, flops)
