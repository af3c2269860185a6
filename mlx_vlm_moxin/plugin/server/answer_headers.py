"""mlx-vlm's middleware that sets headers of answers, without a cost for each chunk.

Starlette's ``BaseHTTPMiddleware`` passes every chunk of a stream from one task to another, which
was a fifth of the event loop's time.
"""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from mlx_vlm.server.app import add_server_header
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Dispatch = Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]


class AnswerHeaders:
    """ASGI middleware with a function for ``BaseHTTPMiddleware`` that only sets headers."""

    def __init__(self, app: ASGIApp, dispatch: Dispatch):
        self._app = app
        self._dispatch = dispatch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and set the headers of its answer."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": await self._headers(scope, message)}
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)

    async def _headers(self, scope: Scope, start: Message) -> list[tuple[bytes, bytes]]:
        answer = Response(status_code=start["status"])
        answer.raw_headers = list(start.get("headers", []))

        async def call_next(request: Request) -> Response:
            return answer

        return (await self._dispatch(Request(scope), call_next)).raw_headers


def use_answer_headers(app: FastAPI) -> None:
    """Replace mlx-vlm's middleware in ``app``."""
    for index, middleware in enumerate(app.user_middleware):
        is_base = middleware.cls is BaseHTTPMiddleware
        if is_base and middleware.kwargs.get("dispatch") is add_server_header:
            app.user_middleware[index] = Middleware(AnswerHeaders, dispatch=add_server_header)
