"""What the machine can do: read bandwidth and matrix arithmetic, as MLX reaches them."""

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
        name: device and system, in words.
        bandwidth: bytes per second that a reduction reads.
        flops: bfloat16 operations per second of a large matrix product.
    """

    name: str
    bandwidth: float
    flops: float


def seconds(run: Callable[[], mx.array]) -> float:
    """Wall time of evaluating what ``run`` returns."""
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
    """Measure the machine, which needs a few seconds and at most 4 GB."""
    on_cpu = mx.default_device() == mx.cpu
    data = mx.ones((1 << (26 if on_cpu else 30),), mx.float32)
    side = 512 if on_cpu else 8192
    # Random values: products of constants run at higher clocks than real ones.
    left, right = (mx.random.normal((side, side)).astype(mx.bfloat16) for _ in range(2))
    mx.eval(data, left, right)
    bandwidth = data.nbytes / _best(lambda: mx.max(data))
    flops = 2 * side**3 / _best(lambda: left @ right)
    return Machine(device_name(), bandwidth, flops)
