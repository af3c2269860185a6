"""Middleware that checks requests to a loaded Moxin before mlx-vlm's endpoints.

The body is limited, parsed and checked once; the model that it names is loaded without delaying
other requests; its picture is read. Errors in these steps are answered here, in the same way for
every endpoint, streamed or not. While the endpoint works, the connection is watched, and the work
ends when the client disconnects.
"""

import json
from typing import Any

from fastapi import HTTPException
from mlx_vlm.generate import normalize_resize_shape
from mlx_vlm.models.moxin.picture_sources import PictureError
from mlx_vlm.server import _require_management_api_key
from mlx_vlm.server.runtime import runtime
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_vlm_moxin.plugin.server import context, log, models, request_threads
from mlx_vlm_moxin.plugin.server.client import Client, serving
from mlx_vlm_moxin.plugin.server.connection import Connection, declared_length
from mlx_vlm_moxin.plugin.server.errors import (
    BadRequestError,
    RefusedError,
    error_answer,
    sentence,
    serves_moxin,
)
from mlx_vlm_moxin.plugin.server.generator import adopt
from mlx_vlm_moxin.plugin.server.json_body import parse_object, without_nulls
from mlx_vlm_moxin.plugin.server.picture_parts import CHAT, MESSAGES, RESPONSES, picture_sources
from mlx_vlm_moxin.plugin.server_settings import ServerSettings

COMPLETIONS = "/completions"
# Paths without /v1 -> the API of their messages, and whether their pictures are used.
_ENDPOINTS = {
    CHAT: (CHAT, True),
    RESPONSES: (RESPONSES, True),
    "/responses/compact": (RESPONSES, True),
    "/responses/input_tokens": (RESPONSES, False),
    MESSAGES: (MESSAGES, True),
    "/messages/count_tokens": (MESSAGES, False),
    COMPLETIONS: (COMPLETIONS, False),
}


class Gate:
    """ASGI middleware around mlx-vlm's endpoints."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http" or not serves_moxin() or not _is_authorized(scope):
            await self._app(scope, receive, send)
            return
        request_threads.provide()
        path, settings = scope["path"].removeprefix("/v1"), ServerSettings.from_environment()
        connection = Connection(receive)
        try:
            if scope["method"] != "POST" or path not in _ENDPOINTS:
                await self._pass_on(scope, receive, send, settings)
                return
            body = await connection.read(scope, settings.max_body_bytes)
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

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, settings: ServerSettings
    ) -> None:
        """A request for another endpoint.

        Raises:
            RefusedError: if it would unload a pinned model, or is too large.
        """
        if scope["path"] == "/unload" and settings.pin_model:
            raise RefusedError(403, "This server keeps its model")
        if declared_length(scope) > settings.max_body_bytes:
            await Connection(receive).read(scope, settings.max_body_bytes)
        await self._app(scope, receive, send)


def _is_authorized(scope: Scope) -> bool:
    try:
        _require_management_api_key(HTTPConnection(scope))
    except HTTPException:
        return False
    return True


async def _prepare(path: str, body: bytes) -> tuple[Client, bytes]:
    """The request and its body for the endpoint.

    Raises:
        RefusedError: with the reason if it cannot be answered.
    """
    endpoint, uses_pictures = _ENDPOINTS[path]
    try:
        received = parse_object(body)
        request = without_nulls(received)
        sources = picture_sources(endpoint, request)
        context.check_length(request, sources)
        await models.load_for(request)
        client = Client(generator=runtime.response_generator)
        # mlx-vlm itself refuses a second picture.
        if uses_pictures and len(sources) == 1 and serves_moxin():
            await _read_picture(client, sources[0], request, is_stored=endpoint == RESPONSES)
    except (BadRequestError, PictureError) as error:
        raise RefusedError(400, sentence(error)) from error
    except HTTPException as error:
        raise RefusedError(error.status_code, sentence(error.detail)) from error
    if request != received:
        body = json.dumps(request, ensure_ascii=False).encode()
    return client, body


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
