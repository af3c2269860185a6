"""Output directories that appear only when they are complete.

A conversion writes to a hidden directory next to its target, which is renamed to the target when
it is finished. An unfinished directory is removed, at the latest by the next run.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from mlx_vlm_moxin.checkpoints.stopping import STOP_SIGNALS


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{target} is a file; choose another --mlx-path")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{target} exists; choose another --mlx-path or give --overwrite")
    if not (target / "config.json").exists():
        raise ValueError(
            f"{target} does not contain a model (no config.json) and is not overwritten; "
            "choose another --mlx-path"
        )


def _lock(directory: Path, target: Path) -> int:
    """Create ``directory`` if necessary and lock it exclusively; returns the descriptor.

    Raises:
        ValueError: if another process holds the lock.
    """
    directory.mkdir(exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have renamed the directory between the previous two lines.
        if os.path.samestat(os.fstat(descriptor), os.stat(directory)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    raise ValueError(
        f"Another conversion to {target} is running; wait for it or choose another --mlx-path"
    )


def _remove_contents(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Delay signals that end the process until the block is finished."""
    if threading.current_thread() is not threading.main_thread():
        # Python runs signal handlers only in the main thread.
        yield
        return
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in STOP_SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in received:
        signal.raise_signal(number)


def _recover(target: Path, previous: Path) -> None:
    """Finish or undo a replacement that was interrupted between its two renames."""
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
    elif previous.exists():
        os.rename(previous, target)


def _replace(target: Path, staging: Path, previous: Path) -> None:
    """Replace ``target`` by ``staging``; ``target`` is kept until this has succeeded."""
    try:
        with _signals_wait():
            if target.exists():
                os.rename(target, previous)
            os.rename(staging, target)
    finally:
        _recover(target, previous)


def _sync(directory: Path) -> None:
    """Flush the files to disk; otherwise the rename could reach the disk before them."""
    for path in [*directory.iterdir(), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def staged(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A directory to write to, which becomes ``target`` if the block succeeds.

    Args:
        target: the final directory.
        overwrite: replace a model that already exists at ``target``.

    Raises:
        ValueError: if ``target`` exists and may not be overwritten, or another process is
            writing it.
    """
    target = target.resolve()
    staging = target.with_name(f".{target.name}.partial")
    previous = target.with_name(f".{target.name}.previous")
    made = [path for path in target.parents if not path.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(staging, target)
    try:
        _recover(target, previous)
        _check_target(target, overwrite)
        _remove_contents(staging)
        yield staging
        _sync(staging)
        _replace(target, staging, previous)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
    finally:
        os.close(lock)
