"""The accuracy that a finished conversion cost, measured against a loadable source."""

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

# Share of memory available to a model; the rest is for activations and the system.
_MEMORY_SHARE = 0.75


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _reason_not_to(conversion: Conversion) -> str | None:
    """Why not to compare: nothing would differ, or it needs too much memory; else None."""
    source = conversion.source
    if not source.is_loadable and conversion.quantization == source.quantization:
        return "nothing was quantised that was not quantised before"
    size, memory = build_skeleton(source, QuantizeOptions()).nbytes, _physical_memory()
    if size > _MEMORY_SHARE * memory:
        return (
            f"the source needs {format_size(size)} of this machine's {format_size(memory)} of "
            "memory; give --verify to do it anyway"
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
    """Compare a conversion with its source; prints why and returns None if it does not.

    Args:
        conversion: the finished conversion.
        baseline: returns a directory of the source that mlx-vlm loads, see
            ``conversion.baseline``.
        wanted: True or False to decide; None to compare if it is informative and fits in memory.
        images: directory of pictures to use instead of the bundled ones.
        quiet: print nothing but warnings.

    Raises:
        RuntimeError: if it is ``wanted`` and fails. A failure is a warning otherwise.
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
