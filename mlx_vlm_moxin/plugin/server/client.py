"""The current request in any thread, and whether its client is still connected.

mlx-vlm's endpoints use threads and check only in streams whether the client is still connected.
Context variables are copied into a request's threads, so the generator knows here which request it
works for, and can end the work when the client disconnects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

_current: ContextVar[Client | None] = ContextVar("mlx_vlm_moxin_client", default=None)
_active: set[Client] = set()


class ClientGoneError(ConnectionError):
    """The client no longer waits for the answer."""

    def __init__(self) -> None:
        super().__init__("The client has closed the connection")


class Client:
    """One request.

    Attributes:
        is_gone: whether its client has disconnected.
        pictures: its pictures that were already read, by source.
        generator: mlx-vlm's generator of the model that answers the request.
    """

    def __init__(self, pictures: dict[str, Any] | None = None, generator: Any = None):
        self.is_gone = False
        self.pictures = pictures or {}
        self.generator = generator
        self._tokens: list[Any] = []
        self._lock = Lock()

    def attach(self, tokens: Any) -> ClientTokens:
        """``tokens``, an iterator with ``close``, which ends with the connection.

        Raises:
            ClientGoneError: if the connection has already ended.
        """
        with self._lock:
            self._tokens.append(tokens)
            is_gone = self.is_gone
        if is_gone:
            tokens.close()
            raise ClientGoneError
        return ClientTokens(tokens, self)

    def leave(self) -> None:
        """The client has disconnected: end the generation for it."""
        with self._lock:
            self.is_gone = True
            tokens, self._tokens = self._tokens, []
        for iterator in tokens:
            iterator.close()


class ClientTokens:
    """An answer's tokens; if the client disconnects, an error instead of a short answer."""

    def __init__(self, tokens: Any, client: Client):
        self._tokens = tokens
        self._client = client

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._tokens)
        except StopIteration:
            if self._client.is_gone:
                raise ClientGoneError from None
            raise

    def close(self) -> None:
        """End the request if it is still running."""
        self._tokens.close()


def current_client() -> Client | None:
    """The request that the calling code works for; None outside of a request."""
    return _current.get()


@contextmanager
def serving(client: Client) -> Iterator[None]:
    """Make ``client`` the current request of the enclosed code."""
    token = _current.set(client)
    _active.add(client)
    try:
        yield
    finally:
        _active.discard(client)
        _current.reset(token)


def count_requests() -> int:
    """Number of requests that are being answered."""
    return len(_active)


def is_in_use(generator: Any) -> bool:
    """Whether a request that uses ``generator``'s model is running."""
    return any(client.generator is generator for client in list(_active))
