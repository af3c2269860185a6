"""The connection of a request: its body, and whether the client is still connected."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from mlx_vlm_moxin.plugin.server.client import Client
from mlx_vlm_moxin.plugin.server.errors import RefusedError


def declared_length(scope: Scope) -> int:
    """Bytes of the body according to the request's header; 0 if it has none."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


class Connection:
    """The connection of one request, from the ASGI server's functions."""

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
        is_too_large = declared_length(scope) > limit
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
        """Detect within the block that the client disconnects."""
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
        """Mark ``client`` when it has disconnected."""
        self._client = client
        if self._gone.is_set():
            client.leave()

    async def unless_gone(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of ``work``; None, without waiting for it, if the client disconnects."""
        task = asyncio.create_task(work)
        gone = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else None
        finally:
            task.cancel()
            gone.cancel()

    def replay(self, data: bytes) -> Receive:
        """The messages that the endpoint receives: ``data``, then the end of the connection."""
        messages = iter([{"type": "http.request", "body": data, "more_body": False}])

        async def receive() -> Message:
            message = next(messages, None)
            if message is None:
                await self._gone.wait()
                # A stream that is cancelled before it begins would be counted as running forever.
                await self._answering.wait()
                message = {"type": "http.disconnect"}
            return message

        return receive

    def noted(self, send: Send) -> Send:
        """``send`` that records whether the answer has begun."""

        async def note(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body":
                self._answering.set()

        return note
