"""One line instead of a traceback when a command of mlx-vlm meets bad input.

In mlx-vlm's commands every exception ends the process with a traceback. Once the model
package is loaded in such a command, this hook prints errors about the user's input (a file, a
picture, a checkpoint, an option) as one line on standard error; the exit status stays 1. The
server's log also shows them without a traceback. Everything else, and everything in a program
that merely imports mlx-vlm, keeps its traceback.
``MLX_VLM_MOXIN_TRACEBACK=1`` switches it off.
"""

import logging
import os
import re
import sys
from types import TracebackType

from mlx_vlm_moxin.checkpoints.messages import causes, one_line

# Modules whose ValueErrors are checks of input, each with a message for the user.
_OURS = "mlx_vlm.models.moxin"
_CHECKS = (
    _OURS,
    "mlx_vlm_moxin",
    "mlx_vlm.convert",
    "mlx_vlm.generate.audio",
    "mlx_vlm.generate.dispatch",
    "mlx_vlm.generate.image",
    "mlx_vlm.generate.video",
    "mlx_vlm.kv_quant",
    "mlx_vlm.prompt_utils",
    "mlx_vlm.quant_utils",
    "mlx_vlm.sample_utils",
    "mlx_vlm.speculative",
    "mlx_vlm.train",
    "mlx_vlm.turboquant",
    "mlx_vlm.utils",
    "huggingface_hub",
)
# Packages whose ImportErrors name the package that an option needs.
_HOSTS = ("mlx_vlm",)
# An error of an MLX operation has the operation's name. Only reading a file is about input.
_OPERATION = re.compile(r"\[(?!load_safetensors)\w+\]")
_READING = "[load_safetensors]"
# The loggers used when a server starts and when it loads models.
_LOGGERS = ("mlx_vlm.server", "uvicorn.error")


def _raised_in(error: BaseException) -> str:
    """Name of the module whose code raised ``error``."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "")


def _main_module() -> str:
    """Full name of the module that ``python -m`` runs; empty otherwise."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if spec else ""


def _is_check(error: BaseException) -> bool:
    """Whether ``error`` was raised deliberately, about the user's input."""
    if isinstance(error, OSError):
        return True
    module = _raised_in(error)
    if module == "__main__":
        module = _main_module()
    if isinstance(error, ImportError):
        return module.startswith(_HOSTS) and error.name is None
    message = str(error)
    if isinstance(error, RuntimeError):
        return message.startswith(_READING)
    is_ours = isinstance(error, ValueError) and module.startswith(_CHECKS)
    return is_ours and _OPERATION.match(message) is None


def input_error(error: BaseException | None) -> BaseException | None:
    """The exception in ``error``'s chain that describes the wrong input.

    Our checks have priority, since mlx-vlm wraps their errors; then the outermost one. Returns None
    if no exception in the chain is about the input.
    """
    found = None
    for cause in causes(error):
        if isinstance(cause, ValueError) and _raised_in(cause).startswith(_OURS):
            return cause
        if found is None and _is_check(cause):
            found = cause
    return found


class _WithoutTraceback(logging.Filter):
    """Removes the traceback of an error about input from a log record."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
        found = input_error(error)
        if found is None:
            return True
        record.exc_info = record.exc_text = None
        # uvicorn logs the text of the traceback of a failed start.
        if record.getMessage().startswith("Traceback"):
            record.msg, record.args = f"error: {one_line(found)}", ()
        return True


def _runs_a_command() -> bool:
    """Whether the process is a command of mlx-vlm or mlx-lm, by ``-m`` or console script."""
    names = (_main_module(), os.path.basename(sys.argv[0] if sys.argv else ""))
    hosts = ("mlx_vlm", "mlx_lm", "mlx_vlm_moxin")
    return any(name.split(".")[0] in hosts for name in names)


def install() -> None:
    """Install hook and log filters if this process is a command. Idempotent."""
    if os.environ.get("MLX_VLM_MOXIN_TRACEBACK") or not _runs_a_command():
        return
    previous = sys.excepthook
    if getattr(previous, "__module__", None) == __name__:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        found = input_error(error)
        if found is None:
            previous(kind, error, trace)
        else:
            print("error:", one_line(found), file=sys.stderr)

    sys.excepthook = hook
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_WithoutTraceback())
