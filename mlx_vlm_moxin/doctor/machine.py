"""Checks of the machine: which widths of Moxin-7B fit, and whether the CUDA kernels run."""

import os
import shutil
from pathlib import Path

from mlx_vlm_moxin.doctor.check import OK, WARNING, Check


def _compiled_folders() -> tuple[Path, ...]:
    """Where this package's kernels, the driver and MLX cache compiled kernels."""
    from mlx_vlm.models.moxin.cuda import cubin_cache

    return (
        cubin_cache.folder(),
        Path(os.environ.get("CUDA_CACHE_PATH", "~/.nv/ComputeCache")).expanduser(),
        Path(os.environ.get("MLX_PTX_CACHE_DIR", "/tmp/mlx")),
    )


def _fitting(sizes: dict[int | None, int], limit: float) -> list[int | None]:
    return [bits for bits, size in sizes.items() if size <= limit]


def memory() -> Check:
    """Check the memory available for weights, and the widest Moxin-7B that fits."""
    from mlx_vlm_moxin.checkpoints.messages import format_size
    from mlx_vlm_moxin.library.memory import (
        WEIGHTS_SHARE,
        device_memory,
        width_name,
        width_sizes,
    )

    found, sizes = device_memory(), width_sizes()
    available = found.total if found.free is None else found.free
    fitting = _fitting(sizes, WEIGHTS_SHARE * available)
    values = {
        "total": found.total,
        "free": found.free,
        "fits": [width_name(bits) for bits in fitting],
    }
    text = format_size(found.total)
    if found.free is not None:
        text += f", {format_size(found.free)} free"
    if not fitting:
        smallest = min(sizes.values())
        advice = f"Moxin-7B needs at least {format_size(smallest)}; close other programs"
        return Check("memory", WARNING, f"{text}: no width of Moxin-7B fits", advice, values)
    widest = fitting[0]
    text += f": Moxin-7B fits at {width_name(widest)} ({format_size(sizes[widest])})"
    return Check("memory", OK, text + " and narrower", values=values)


def disk() -> Check:
    """Check the free space on the disk for downloads."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from mlx_vlm_moxin.checkpoints.messages import format_size
    from mlx_vlm_moxin.library.memory import width_name, width_sizes

    folder = Path(HF_HUB_CACHE)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free, sizes = shutil.disk_usage(existing).free, width_sizes()
    fitting = _fitting(sizes, free)
    names = [width_name(bits) for bits in fitting]
    values = {"folder": str(folder), "free": free, "fits": names}
    text = f"{format_size(free)} free for downloads ({folder})"
    if not fitting:
        advice = "free some space, or set HF_HOME to a folder on another disk"
        return Check("disk", WARNING, f"{text}: no width of Moxin-7B fits", advice, values)
    return Check("disk", OK, f"{text}: Moxin-7B fits at {names[0]} and narrower", values=values)


def _contents(folder: Path) -> tuple[int, int]:
    """How many files are in a folder and its folders, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def kernels() -> Check:
    """Report whether the CUDA kernels are on, why not, and what has already been compiled."""
    import mlx.core as mx
    from mlx_vlm.models.moxin.cuda import device

    from mlx_vlm_moxin.checkpoints.messages import format_size

    reason = device.reason_off()
    values = {"enabled": reason is None, "reason": reason}
    if not mx.cuda.is_available():
        return Check("CUDA kernels", OK, f"off: {reason}", values=values)
    folders = [folder for folder in _compiled_folders() if folder.is_dir()]
    compiled = {str(folder): _contents(folder) for folder in folders}
    values["compiled"] = {
        folder: {"files": files, "bytes": size} for folder, (files, size) in compiled.items()
    }
    kept = ", ".join(
        f"{files} file{'s' * (files != 1)} ({format_size(size)}) in {folder}"
        for folder, (files, size) in compiled.items()
        if files
    )
    text = f"compiled on disk: {kept or 'nothing yet, so the first run takes longer'}"
    if reason is None:
        return Check("CUDA kernels", OK, f"on; {text}", values=values)
    advice = "MLX computes everything, with the same results but slower"
    return Check("CUDA kernels", WARNING, f"off: {reason}; {text}", advice, values)
