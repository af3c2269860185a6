"""What a finished conversion cost, measured against a source that mlx-vlm can load."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from mlx_vlm_moxin.checkpoints.messages import format_size, one_line
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.skeleton import build_skeleton
from mlx_vlm_moxin.conversion.convert import Conversion
from mlx_vlm_moxin.conversion.verify.compare import verify
from mlx_vlm_moxin.conversion.verify.report import Verification

# Share of the memory that a model may take: the rest is for activations and the system.
_MEMORY_SHARE = 0.75


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _reason_not_to(conversion: Conversion) -> str | None:
    """Why the comparison would say nothing or take too much, if it would."""
    source = conversion.source
    if not source.is_loadable and conversion.quantization == source.quantization:
        return "nothing was quantised that was not quantised before"
    size, memory = build_skeleton(source, QuantizeOptions()).nbytes, _physical_memory()
    if size > _MEMORY_SHARE * memory:
        return (
            f"the source needs {format_size(size)} of this machine's {format_size(memory)} of "
            "memory; --verify does it all the same"
        )
    return None


def measure_cost(
    conversion: Conversion,
    baseline: Callable[[], Path],
    *,
    wanted: bool | None = None,
    images: Path | None = None,
    quiet: bool = False,
) -> Verification | None:
    """Compare a conversion with its source; None if that was not done, and says why.

    Args:
        baseline: gives a directory of the source that mlx-vlm loads, see
            ``conversion.baseline``.
        wanted: None to do it if it says something and fits in memory.
        images: directory of pictures in place of the bundled ones.

    Raises:
        RuntimeError: if it is ``wanted`` and fails. Otherwise that is a warning.
    """
    reason = _reason_not_to(conversion) if wanted is None else None
    if wanted is False or reason is not None:
        if reason is not None and not quiet:
            print(f"Not verified: {reason}.")
        return None
    try:
        return verify(baseline(), conversion.directory, images, quiet)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        if wanted:
            raise RuntimeError(
                f"--verify failed: {one_line(error, 300)}. The model is whole in "
                f"{conversion.directory}"
            ) from error
        print(f"warning: not verified: {one_line(error)}", file=sys.stderr)
        return None
