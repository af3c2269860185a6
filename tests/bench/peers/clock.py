"""Wall time of work in MLX or PyTorch."""

import sys
import time
from collections.abc import Callable

import mlx.core as mx
from mlx_vlm.generate.common import generation_stream


def synchronize() -> None:
    """Wait until neither MLX nor PyTorch has work left on the device."""
    mx.synchronize()
    mx.synchronize(generation_stream)
    if "mlx_lm.generate" in sys.modules:
        mx.synchronize(sys.modules["mlx_lm.generate"].generation_stream)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Seconds from an idle device to the end of the work that ``work`` submits."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start
