"""Wall time of work in MLX or PyTorch."""

import statistics
import sys
import time
from collections.abc import Callable

import mlx.core as mx
from mlx_vlm.generate.common import generation_stream

# Passes of a round, and the seconds after which no further one begins.
PASSES, ROUND_S = 5, 0.3


def synchronize() -> None:
    """Wait until neither MLX nor PyTorch has work left on the device."""
    mx.synchronize()
    mx.synchronize(generation_stream)
    if "mlx_lm.generate" in sys.modules:
        mx.synchronize(sys.modules["mlx_lm.generate"].generation_stream)
    _synchronize_torch()


def _synchronize_torch() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Seconds from an idle device to the end of ``work``.

    Args:
        work: waits for what it computes in MLX, by ``mx.eval``: on a GPU, to synchronise three idle
            streams of MLX would take another 0.3 to 0.5 ms. What it submits in PyTorch is waited
            for here.
    """
    synchronize()
    start = time.perf_counter()
    work()
    _synchronize_torch()
    return time.perf_counter() - start


def milliseconds(work: Callable[[], object]) -> float:
    """Median of up to ``PASSES`` passes, which are not slowed down by what ran before the first."""
    passes: list[float] = []
    while len(passes) < PASSES and sum(passes) < ROUND_S:
        passes.append(seconds(work))
    return 1e3 * statistics.median(passes)
