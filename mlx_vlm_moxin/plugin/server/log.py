"""The server's log: one line for an invalid request, without a traceback.

mlx-vlm logs every exception of a request as unexpected, with its traceback and with the data
of an unreadable picture.
"""

import logging
import sys
from types import ModuleType, SimpleNamespace

from mlx_vlm_moxin.checkpoints.messages import causes, one_line
from mlx_vlm_moxin.plugin.server.client import ClientGoneError
from mlx_vlm_moxin.plugin.server.errors import client_error, sentence, serves_moxin

MAX_LINE = 1000
logger = logging.getLogger("mlx_vlm.server")


def refused(path: str, status: int, message: str) -> None:
    """Log a request that is answered with an error of the client."""
    logger.warning("Request refused: endpoint=%s status=%d %s", path, status, message)


def brief(record: logging.LogRecord) -> bool:
    """A filter that shortens records; it keeps all of them."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None and record.levelno >= logging.ERROR:
        # The filter of commands (command_errors) may already have removed the traceback.
        error = sys.exc_info()[1]
    if _is_gone(error):
        record.msg, record.levelno, record.levelname = str(ClientGoneError()), 20, "INFO"
        record.args, record.exc_info, record.exc_text = (), None, None
    elif (found := _explained(error)) is not None:
        record.msg, record.levelno, record.levelname = f"Refused: {sentence(found)}", 30, "WARNING"
        record.args, record.exc_info, record.exc_text = (), None, None
    elif serves_moxin():
        message = record.getMessage()
        if len(message) > MAX_LINE:
            record.msg, record.args = one_line(message, MAX_LINE), ()
    return True


def _is_gone(error: BaseException | None) -> bool:
    return any(isinstance(cause, ClientGoneError) for cause in causes(error))


def _explained(error: BaseException | None) -> BaseException | None:
    """The error of the request, if that ended it."""
    return client_error(error) if error is not None and serves_moxin() else None


def install() -> None:
    """Add the filter to the logger of mlx-vlm's server. Idempotent."""
    logger.addFilter(brief)


def traceback_module(original: ModuleType) -> SimpleNamespace:
    """Replaces ``traceback`` in Anthropic's endpoints, which print every exception."""

    def print_exc() -> None:
        logger.exception("Request to /v1/messages failed")

    return SimpleNamespace(**{**vars(original), "print_exc": print_exc})
