"""What every request to a loaded Moxin passes before an endpoint of mlx-vlm sees it.

The body is limited, parsed and checked once; the model that it names is loaded without holding
up other requests; its picture is read. Whatever is wrong with them is answered here, in the
same way for every endpoint, streamed or not. While the endpoint works, the connection is
watched, and when the client hangs up the work ends.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import HTTPException
from mlx_vlm.generate import normalize_resize_shape
from mlx_vlm.models.moxin.picture_sources import PictureError
from mlx_vlm.server import _require_management_api_key
from mlx_vlm.server.runtime import runtime
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_vlm_moxin.plugin.server import context, log, models
from mlx_vlm_moxin.plugin.server.client import Client, serving
from mlx_vlm_moxin.plugin.server.errors import (
    BadRequestError,
    error_answer,
    sentence,
    serves_moxin,
)
from mlx_vlm_moxin.plugin.server.generator import adopt
from mlx_vlm_moxin.plugin.server.json_body import parse_object, without_nulls
from mlx_vlm_moxin.plugin.server.picture_parts import CHAT, MESSAGES, RESPONSES, picture_sources
from mlx_vlm_moxin.plugin.server.settings import ServerSettings

COMPLETIONS = "/completions"
# Paths without /v1 -> the API whose messages they hold, and whether their pictures are used.
_ENDPOINTS = {
    CHAT: (CHAT, True),
    RESPONSES: (RESPONSES, True),
    "/responses/compact": (RESPONSES, True),
    "/responses/input_tokens": (RESPONSES, False),
    MESSAGES: (MESSAGES, True),
    "/messages/count_tokens": (MESSAGES, False),
    COMPLETIONS: (COMPLETIONS, False),
}


class RefusedError(Exception):
    """The request is answered with ``status`` and one sentence."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Gate:
    """ASGI middleware around mlx-vlm's endpoints."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        path = scope["path"].removeprefix("/v1") if scope["type"] == "http" else ""
        is_ours = path in _ENDPOINTS and scope.get("method") == "POST"
        if not is_ours or not serves_moxin() or not _is_authorized(scope):
            await self._app(scope, receive, send)
            return
        connection = _Connection(receive)
        try:
            body = await connection.read(scope, ServerSettings.from_environment().max_body_bytes)
            async with connection.watched():
                prepared = await connection.unless_gone(_prepare(path, body))
                if prepared is not None:
                    client, data = prepared
                    connection.serve(client)
                    with serving(client):
                        await self._app(
                            _resized(scope, data), connection.replay(data), connection.noted(send)
                        )
        except RefusedError as refusal:
            log.refused(path, refusal.status, str(refusal))
            answer = error_answer(path, refusal.status, str(refusal))
            await answer(scope, receive, send)


def _is_authorized(scope: Scope) -> bool:
    try:
        _require_management_api_key(HTTPConnection(scope))
    except HTTPException:
        return False
    return True


async def _prepare(path: str, body: bytes) -> tuple[Client, bytes]:
    """The request and its body as the endpoint shall see them.

    Raises:
        RefusedError: why it cannot be answered.
    """
    endpoint, uses_pictures = _ENDPOINTS[path]
    try:
        request = parse_object(body)
        sources = picture_sources(endpoint, request)
        request = without_nulls(request)
        context.check_length(request, sources)
        await models.load_for(request)
        client = Client(generator=runtime.response_generator)
        # Of two, mlx-vlm says itself that there is one too many.
        if uses_pictures and len(sources) == 1 and serves_moxin():
            await _read_picture(client, sources[0], request, is_stored=endpoint == RESPONSES)
    except (BadRequestError, PictureError) as error:
        raise RefusedError(400, sentence(error)) from error
    except HTTPException as error:
        raise RefusedError(error.status_code, sentence(error.detail)) from error
    return client, json.dumps(request, ensure_ascii=False).encode()


async def _read_picture(
    client: Client, source: str, request: dict[str, Any], is_stored: bool
) -> None:
    try:
        shape = normalize_resize_shape(request.get("resize_shape"))
    except (TypeError, ValueError):
        return  # the endpoint refuses it
    reader = adopt(client.generator).pictures
    picture = await reader.read(source, shape)
    client.pictures[source] = picture
    if is_stored and shape is None:
        reader.remember(source, picture)


def _resized(scope: Scope, data: bytes) -> Scope:
    """``scope`` with the length of ``data`` in its headers."""
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name.lower() not in (b"content-length", b"transfer-encoding")
    ]
    return {**scope, "headers": [*headers, (b"content-length", str(len(data)).encode())]}


class _Connection:
    """The client's side of a request: its body, and whether it is still there."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self._gone = asyncio.Event()
        self._answering = asyncio.Event()
        self._client: Client | None = None

    async def read(self, scope: Scope, limit: int) -> bytes:
        """The body.

        Raises:
            RefusedError: if it is larger than ``limit``, once the client has sent the rest of it,
                since most clients do not read an answer before; or if it does not arrive.
        """
        length = dict(scope["headers"]).get(b"content-length", b"")
        is_too_large = length.isdigit() and int(length) > limit
        chunks, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise RefusedError(400, "The connection was closed before the request was complete")
            more = message.get("more_body", False)
            size += len(message.get("body", b""))
            is_too_large = is_too_large or size > limit
            if is_too_large:
                chunks.clear()
            else:
                chunks.append(message.get("body", b""))
            if size > 10 * limit:
                break
        if is_too_large:
            raise RefusedError(413, f"The body of the request is larger than {limit} bytes")
        return b"".join(chunks)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Notice in the enclosed code when the client hangs up."""
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
        if self._client is not None:
            self._client.leave()

    def serve(self, client: Client) -> None:
        """Tell ``client`` when its sender has gone."""
        self._client = client
        if self._gone.is_set():
            client.leave()

    async def unless_gone(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of ``work``; None, without waiting for it, if the client hangs up."""
        task = asyncio.create_task(work)
        gone = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else None
        finally:
            task.cancel()
            gone.cancel()

    def replay(self, data: bytes) -> Receive:
        """What the endpoint receives: ``data``, then the end of the connection."""
        messages = iter([{"type": "http.request", "body": data, "more_body": False}])

        async def receive() -> Message:
            message = next(messages, None)
            if message is None:
                await self._gone.wait()
                # A stream that is cancelled before it begins would count as under way for ever.
                await self._answering.wait()
                message = {"type": "http.disconnect"}
            return message

        return receive

    def noted(self, send: Send) -> Send:
        """``send``, by which it is known whether the answer has begun."""

        async def note(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body":
                self._answering.set()

        return note
