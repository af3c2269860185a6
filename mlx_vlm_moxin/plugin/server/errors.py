"""Errors of the client answered as such, for requests to a loaded Moxin.

mlx-vlm's server answers every exception but its own with HTTP 500, also a picture that
cannot be read. The exceptions stay what they are; only the answer made from them changes.
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

_DATA_URI = re.compile(r"data:[\w./+-]*;base64,\S*[\w/+=]")
_REPR = re.compile(r" ?<[\w.]+ object at 0x[0-9a-f]+>")


class BadRequestError(ValueError):
    """A request that cannot be answered as it is; the message says why, in one sentence."""


def serves_moxin() -> bool:
    """Whether the language model that the server has loaded is Moxin."""
    return isinstance(runtime.model_cache.get("processor"), MoxinProcessor)


def client_error(error: BaseException | None) -> BaseException | None:
    """The exception in ``error``'s chain that speaks of the request; None if none does."""
    checked = input_error(error)
    for cause in causes(error):
        if isinstance(cause, (BadRequestError, TemplateError)):
            return cause
    # An OSError outside the checks is the server's own, for example a full disk.
    return checked if isinstance(checked, ValueError) else None


def sentence(error: BaseException) -> str:
    """``error``'s message in one line, without the data of a picture sent inline."""
    return one_line(_REPR.sub("", _DATA_URI.sub("a data URI", str(error))) or error)


def _first_fault(error: ValidationError | RequestValidationError) -> str:
    """The first of the fields that do not fit, in one line."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _better_answer(error: BaseException | None) -> tuple[int, Any] | None:
    """Status and detail for ``error`` if it is the client's; None to leave the answer."""
    if not serves_moxin():
        return None
    if isinstance(error, HTTPException) and isinstance(error.__cause__, ValidationError):
        return error.status_code, _first_fault(error.__cause__)
    if isinstance(error, HTTPException) and 400 <= error.status_code < 500:
        return error.status_code, error.detail
    found = client_error(error)
    return None if found is None else (400, sentence(found))


def _answer(status: int, message: str, detail: Any, headers: Any = None) -> Response:
    """mlx-vlm's ``detail`` and, where OpenAI's clients look for it, ``error``."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"detail": detail, "error": error}, status, headers)


def exception_handlers(app: FastAPI) -> FastAPI:
    """mlx-vlm's application with handlers that answer errors of the client as such."""
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
        return _answer(422, _first_fault(error), jsonable_encoder(error.errors()))

    async def no_json(request: Request, error: ValueError) -> Response:
        if not serves_moxin():
            raise error
        message = f"The body of the request is not JSON: {error}"
        return _answer(400, message, message)

    app.add_exception_handler(HTTPException, http_exception)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(JSONDecodeError, no_json)
    app.add_exception_handler(UnicodeDecodeError, no_json)
    # Built when the server started; the next request builds it with these handlers.
    app.middleware_stack = None
    return app


def parse_response_request(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """mlx-vlm's reader of a body for ``/v1/responses``, given JSON objects only."""

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
            return original(status_code, message, *args)
        kind = "not_found_error" if better[0] == 404 else "invalid_request_error"
        return original(better[0], str(better[1]), kind)

    return error_response
