"""The memory that models are loaded into, and which widths of a model fit into it."""

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx_vlm.models.moxin import ModelConfig

from mlx_vlm_moxin.checkpoints.messages import format_size
from mlx_vlm_moxin.checkpoints.published import MOXIN_7B
from mlx_vlm_moxin.library.sizes import part_bytes

logger = logging.getLogger(__name__)
# Share of the memory for weights; the rest is for activations, cache and system.
WEIGHTS_SHARE = 0.85
# bfloat16, then bits per weight; group size 64.
WIDTHS = (None, 8, 6, 5, 4, 3, 2)
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Memory:
    """Memory of MLX's default device, in bytes.

    Attributes:
        total: the most that a model may use.
        free: the part that is free now; None if unknown.
    """

    total: int
    free: int | None


def _meminfo(name: str) -> int | None:
    """A line of Linux's /proc/meminfo in bytes; None elsewhere."""
    with suppress(OSError, ValueError):
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None


def _host_memory() -> Memory:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # a container's limit; "max" if it has none
        total = min(total, int(_CGROUP_LIMIT.read_text(encoding="ascii")))
    free = _meminfo("MemAvailable")
    return Memory(total, None if free is None else min(free, total))


def device_memory() -> Memory:
    """Memory of MLX's default device: the GPU's, or the machine's if there is none."""
    info = mx.device_info()
    if "max_recommended_working_set_size" in info:  # Apple's GPUs share the machine's memory
        return Memory(info["max_recommended_working_set_size"], None)
    if mx.default_device() == mx.gpu and "total_memory" in info:
        return Memory(info["total_memory"], info.get("free_memory"))
    return _host_memory()


def width_name(bits: int | None) -> str:
    """A width for messages: ``8 bits``, or ``bfloat16`` for None."""
    return "bfloat16" if bits is None else f"{bits} bits"


def width_sizes(
    config: ModelConfig = MOXIN_7B, widths: Iterable[int | None] = WIDTHS
) -> dict[int | None, int]:
    """Bytes of a model's weights at each width (None: bfloat16), largest first."""
    return {bits: sum(part_bytes(config, bits).values()) for bits in widths}


def fits(nbytes: int, memory: int) -> bool:
    """Whether weights leave enough memory for the rest."""
    return nbytes <= WEIGHTS_SHARE * memory


def too_large(nbytes: int, config: ModelConfig, memory: Memory | None = None) -> str | None:
    """A warning in a sentence if weights exceed the memory; None if they fit.

    Args:
        nbytes: bytes of the weights.
        config: the model's, for the width that would fit.
        memory: the device's by default.
    """
    memory = memory or device_memory()
    if fits(nbytes, memory.total):
        return None
    problem = (
        f"The weights take {format_size(nbytes)}, and {format_size(memory.total)} of memory can "
        "be used here: loading them may end the process or make it very slow."
    )
    for bits, size in width_sizes(config).items():
        if size < nbytes and fits(size, memory.total):
            return (
                f"{problem} {width_name(bits)} ({format_size(size)}) would fit: "
                f"quantize={bits}, or --quantize {bits} with python -m mlx_vlm_moxin"
            )
    return f"{problem} No width of this model fits."


def warn_if_too_large(nbytes: int, config: ModelConfig) -> None:
    """Log the warning of ``too_large``, before the weights are read."""
    warning = too_large(nbytes, config)
    if warning is not None:
        logger.warning(warning)
