"""Downloads with a limit on total time and size, from allowed addresses only.

Built on ``urllib.request``. Its timeout applies to each read, which a server that sends byte by
byte never exceeds; here a timer closes the connection when the total time is over. Addresses are
checked when the connection is made, so neither a redirect nor a name server that changes its
answer leads to a private network.
"""

import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import certifi

_CHUNK = 2**16
_USER_AGENT = "Mozilla/5.0 (compatible; mlx-vlm-moxin)"
# Variables of requests and OpenSSL for additional certificate authorities.
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")

NOT_PUBLIC = "no public address answers to its host name"


def download(url: str, *, max_bytes: int, timeout_s: float, private_addresses: bool) -> bytes:
    """The body of an ``http`` or ``https`` address, redirects followed.

    Args:
        max_bytes: the largest body.
        timeout_s: total time, from the name look-up on.
        private_addresses: whether the address may be one of this machine or of a private
            network. If not, no proxy is used either, as it would look up the name itself.

    Raises:
        ValueError: one sentence with the reason why the body did not arrive.
    """
    with _Connections(timeout_s, private_addresses) as connections:
        try:
            with connections.opener.open(_request(url), timeout=timeout_s) as response:
                body = _body(response, max_bytes)
            if connections.timed_out:
                raise TimeoutError  # a closed connection looks like the end of the body
            return body
        except urllib.error.HTTPError as error:
            error.close()
            raise ValueError(f"its server answers with HTTP {error.code}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if connections.timed_out or _is_timeout(error):
                raise ValueError(f"it took longer than {timeout_s:g} seconds") from error
            if isinstance(error, ValueError):
                raise
            reason = getattr(error, "reason", None) or error
            raise ValueError(f"the download failed ({reason})") from error


def _is_timeout(error: BaseException) -> bool:
    return isinstance(getattr(error, "reason", error), TimeoutError)


def _request(url: str) -> urllib.request.Request:
    """A GET of ``url``, whose special characters are escaped and whose password is a header."""
    parts = urlsplit(url)
    host = (parts.hostname or "").encode("idna").decode()
    if not host:
        raise ValueError("it names no host")
    host = f"[{host}]" if ":" in host else host
    place = f"{host}:{parts.port}" if parts.port else host
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/?%:@!$&'()*+,;=~-._")
    request = urllib.request.Request(
        urlunsplit((parts.scheme, place, path, query, "")), headers={"User-Agent": _USER_AGENT}
    )
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        # Not sent to the target of a redirect.
        request.add_unredirected_header(
            "Authorization", f"Basic {b64encode(user.encode()).decode()}"
        )
    return request


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    body = bytearray()
    while chunk := response.read1(_CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise ValueError(f"it is larger than the limit of {max_bytes} bytes")
    if response.length:
        raise ValueError(f"its last {response.length} bytes are missing")
    return bytes(body)


class _Connections:
    """The connections of one download, closed when its time is over."""

    def __init__(self, timeout_s: float, private_addresses: bool):
        self.timed_out = False
        self._private_addresses = private_addresses
        self._deadline = time.monotonic() + timeout_s
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(timeout_s, self._time_out)
        self._timer.daemon = True
        self.opener = urllib.request.OpenerDirector()
        handlers: list[urllib.request.BaseHandler] = [
            _Http(self._connect),
            _Https(self._connect),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.UnknownHandler(),
        ]
        if private_addresses:
            handlers.append(urllib.request.ProxyHandler())
        for handler in handlers:
            self.opener.add_handler(handler)

    def __enter__(self) -> "_Connections":
        self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()
        for connection in self._sockets:
            connection.close()

    def _time_out(self) -> None:
        self.timed_out = True
        for connection in self._sockets:
            with contextlib.suppress(OSError):  # it may have ended already
                connection.shutdown(socket.SHUT_RDWR)

    def _connect(self, address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        """``socket.create_connection`` for allowed addresses, until the deadline."""
        host, port = address
        error: OSError | None = None
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as failure:
            if not self._private_addresses:
                raise OSError(NOT_PUBLIC) from failure
            raise OSError(f"no address found for {host[:80]}") from failure
        allowed = [
            entry for entry in found if self._private_addresses or is_public(str(entry[4][0]))
        ]
        if not allowed:
            raise OSError(NOT_PUBLIC)
        for family, kind, protocol, _name, place in allowed:
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(max(0.01, self._deadline - time.monotonic()))
                connection.connect(place)
            except OSError as failure:
                connection.close()
                error = failure
                continue
            # A second handle on the same connection, because TLS detaches the first one.
            self._sockets.append(connection.dup())
            if self.timed_out:
                raise TimeoutError
            return connection
        raise error or OSError(NOT_PUBLIC)


def is_public(address: str) -> bool:
    """Whether an IP address is public, including IPv6 addresses that contain an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if carried is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = carried or ip
    return ip.is_global and not ip.is_multicast


Connect = Callable[..., socket.socket]


class _Http(urllib.request.HTTPHandler):
    def __init__(self, connect: Connect):
        super().__init__()
        self._connect = connect

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(*arguments: object, **options: object) -> http.client.HTTPConnection:
            made = http.client.HTTPConnection(*arguments, **options)
            made._create_connection = self._connect
            return made

        return self.do_open(connection, request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, connect: Connect):
        named = (os.environ[name] for name in _CA_VARIABLES if os.environ.get(name))
        self._tls = ssl.create_default_context(cafile=next(named, certifi.where()))
        super().__init__(context=self._tls)
        self._connect = connect

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(*arguments: object, **options: object) -> http.client.HTTPSConnection:
            made = http.client.HTTPSConnection(*arguments, context=self._tls, **options)
            made._create_connection = self._connect
            return made

        return self.do_open(connection, request)
