"""Answers errors of the client with a 4xx, for requests to a loaded Moxin.

mlx-vlm's server answers every exception except its own with HTTP 500, even for an unreadable
picture. The exceptions are unchanged; only the answer to them differs.
"""

import re
import sys
from collections.abc import Callable
from json import JSONDecodeError
from typing import Any

from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from jinja2 import TemplateError
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from mlx_vlm.server.runtime import runtime
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mlx_vlm_moxin.checkpoints.messages import causes, one_line
from mlx_vlm_moxin.plugin.command_errors import input_error

MAX_MESSAGE = 500
MAX_FAULTS = 5
_DATA_URI = re.compile(r"data:[\w./+-]*;base64,\S*[\w/+=]")
_REPR = re.compile(r" ?<[\w.]+ object at 0x[0-9a-f]+>")


class BadRequestError(ValueError):
    """An invalid request; the message says why, in one sentence."""


class RefusedError(Exception):
    """The request is answered with ``status`` and the message, one sentence."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def serves_moxin() -> bool:
    """Whether the language model that the server has loaded is Moxin."""
    return isinstance(runtime.model_cache.get("processor"), MoxinProcessor)


def client_error(error: BaseException | None) -> BaseException | None:
    """The exception in ``error``'s chain that is about the request; None if there is none."""
    checked = input_error(error)
    for cause in causes(error):
        if isinstance(cause, (BadRequestError, TemplateError)):
            return cause
    # An OSError outside the checks is the server's fault, for example a full disk.
    return checked if isinstance(checked, ValueError) else None


def sentence(error: BaseException | str) -> str:
    """``error``'s message in one bounded line, without the data of a picture sent inline."""
    return one_line(_REPR.sub("", _DATA_URI.sub("a data URI", str(error))) or error, MAX_MESSAGE)


def _faults(error: ValidationError | RequestValidationError) -> list[dict[str, Any]]:
    """The first of the fields that do not fit, without the values that the client sent."""
    return [
        {"type": fault["type"], "loc": list(fault["loc"]), "msg": one_line(fault["msg"], 200)}
        for fault in error.errors()[:MAX_FAULTS]
    ]


def _first_fault(error: ValidationError | RequestValidationError) -> str:
    """The first of the fields that do not fit, in one line."""
    first = _faults(error)[0]
    return sentence(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _better_answer(error: BaseException | None) -> tuple[int, Any] | None:
    """Status and detail for ``error`` if it is the client's; None to leave the answer."""
    if not serves_moxin():
        return None
    if isinstance(error, HTTPException) and isinstance(error.__cause__, ValidationError):
        return error.status_code, _first_fault(error.__cause__)
    if isinstance(error, HTTPException) and 400 <= error.status_code < 500:
        detail = error.detail
        return error.status_code, sentence(detail) if isinstance(detail, str) else detail
    found = client_error(error)
    return None if found is None else (400, sentence(found))


def _answer(status: int, message: str, detail: Any, headers: Any = None) -> Response:
    """mlx-vlm's ``detail``, and ``error``, which OpenAI's clients read."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"detail": detail, "error": error}, status, headers)


def error_answer(path: str, status: int, message: str) -> Response:
    """An error in the form that clients of the API at ``path`` expect."""
    if path.removeprefix("/v1").startswith("/messages"):
        kinds = {404: "not_found_error", 413: "request_too_large"}
        error = {"type": kinds.get(status, "invalid_request_error"), "message": message}
        return JSONResponse({"type": "error", "error": error}, status)
    return _answer(status, message, message)


def add_exception_handlers(app: FastAPI) -> None:
    """Make mlx-vlm's application answer errors of the client with a 4xx."""
    answer_http_exception = app.exception_handlers[HTTPException]
    answer_invalid = app.exception_handlers[RequestValidationError]

    async def http_exception(request: Request, error: HTTPException) -> Response:
        better = _better_answer(error)
        if better is None:
            return await answer_http_exception(request, error)
        status, detail = better
        return _answer(status, str(detail), detail, error.headers)

    async def invalid(request: Request, error: RequestValidationError) -> Response:
        if not serves_moxin():
            return await answer_invalid(request, error)
        return _answer(422, _first_fault(error), jsonable_encoder(_faults(error)))

    async def no_json(request: Request, error: ValueError) -> Response:
        if not serves_moxin():
            raise error
        message = sentence(f"The body of the request is not JSON: {error}")
        return _answer(400, message, message)

    async def bad_request(request: Request, error: BadRequestError) -> Response:
        return _answer(400, sentence(error), sentence(error))

    app.add_exception_handler(BadRequestError, bad_request)
    app.add_exception_handler(HTTPException, http_exception)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(JSONDecodeError, no_json)
    app.add_exception_handler(UnicodeDecodeError, no_json)


def parse_response_request(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """mlx-vlm's reader of a body for ``/v1/responses``, which gets JSON objects only."""

    def parse(body: Any) -> Any:
        if serves_moxin() and not isinstance(body, dict):
            raise HTTPException(400, "The body of the request is not a JSON object")
        return original(body)

    return parse


def anthropic_error_response(original: Callable[..., Response]) -> Callable[..., Response]:
    """The answer of Anthropic's endpoints to an error, with the status that fits the error.

    Args:
        original: mlx-vlm's function. It is called in ``except`` blocks, since these endpoints
            turn exceptions into answers themselves.
    """

    def error_response(status_code: int, message: str, *args: Any) -> Response:
        error = sys.exc_info()[1]
        if isinstance(error, ValidationError) and serves_moxin():
            return original(status_code, _first_fault(error), *args)
        better = _better_answer(error) if status_code >= 500 else None
        if better is None:
            return original(status_code, sentence(message) if serves_moxin() else message, *args)
        kind = "not_found_error" if better[0] == 404 else "invalid_request_error"
        return original(better[0], str(better[1]), kind)

    return error_response
