"""One line instead of a traceback when a stock mlx-vlm command meets bad input.

mlx-vlm's commands let every exception end the process with a traceback. Once the model
package is loaded in such a command, this hook prints the errors that speak of the
user's input (a file, a picture, a checkpoint, an option) as one line on standard error;
the exit status stays 1. Everything else, and everything in a program that merely
imports mlx-vlm, keeps its traceback. ``MLX_VLM_MOXIN_TRACEBACK=1`` switches it off.
"""

import os
import sys
from types import TracebackType

# Modules whose ValueErrors are checks of input, each with a message for the user.
_OURS = "mlx_vlm.models.moxin"
_CHECKS = (_OURS, "mlx_vlm_moxin", "mlx_vlm.utils", "mlx_vlm.prompt_utils")


def _raised_in(error: BaseException) -> str:
    """Name of the module whose code raised ``error``."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "")


def input_error(error: BaseException | None) -> BaseException | None:
    """The exception in ``error``'s chain that tells the user what was wrong.

    Our own checks come first, since mlx-vlm wraps them; then the outermost one.
    Returns None if no exception in the chain speaks of the input.
    """
    found = None
    while error is not None:
        module = _raised_in(error)
        if isinstance(error, ValueError) and module.startswith(_OURS):
            return error
        is_check = isinstance(error, ValueError) and module.startswith(_CHECKS)
        if found is None and (is_check or isinstance(error, OSError)):
            found = error
        error = error.__cause__ or error.__context__
    return found


def _runs_mlx_vlm() -> bool:
    """Whether the process is one of mlx-vlm's commands, by ``-m`` or console script."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    names = (spec.name if spec else "", os.path.basename(sys.argv[0] if sys.argv else ""))
    return any(name.split(".")[0] in ("mlx_vlm", "mlx_vlm_moxin") for name in names)


def install() -> None:
    """Install the hook if this process is an mlx-vlm command. Idempotent."""
    if os.environ.get("MLX_VLM_MOXIN_TRACEBACK") or not _runs_mlx_vlm():
        return
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        found = input_error(error)
        if found is None:
            previous(kind, error, trace)
        else:
            print("error:", " ".join(str(found).split()) or repr(found), file=sys.stderr)

    if getattr(previous, "__module__", None) != __name__:
        sys.excepthook = hook
