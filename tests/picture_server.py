"""A local web server for pictures, with good and bad behaviour, that counts its requests."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support import IMAGES

DRIP_INTERVAL_S = 0.02


class PictureServer(ThreadingHTTPServer):
    """Answers by the first part of the path; the rest names a reference picture.

    ``/plain/photo.png``; ``/once/...`` answers once, then 404; ``/half/...`` breaks off;
    ``/slow/...`` after ``delay_s``; ``/held/...`` once ``released`` is set; ``/drip/...`` byte by
    byte; ``/endless``; ``/headers`` sends its header byte by byte; ``/to/ADDRESS`` redirects.
    """

    daemon_threads = True
    delay_s = 1.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.counts: Counter[str] = Counter()
        self.closing = threading.Event()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: PictureServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.counts[self.path] += 1
        kind, _, rest = self.path.lstrip("/").partition("/")
        try:
            getattr(self, f"_{kind}")(rest)
        except OSError:
            self.close_connection = True  # the client has disconnected

    def _send(self, data: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def _plain(self, name: str) -> None:
        self._send((IMAGES / name.partition("?")[0]).read_bytes())

    def _once(self, name: str) -> None:
        if self.server.counts[self.path] > 1:
            self.send_error(404)
        else:
            self._plain(name)

    def _half(self, name: str) -> None:
        data = (IMAGES / name).read_bytes()
        self._send(data[: len(data) // 2], len(data))
        self.close_connection = True

    def _slow(self, name: str) -> None:
        self.server.closing.wait(self.server.delay_s)
        self._plain(name)

    def _held(self, name: str) -> None:
        self.server.released.wait()
        self._plain(name)

    def _drip(self, name: str) -> None:
        data = (IMAGES / name).read_bytes()
        self._send(b"", len(data))
        self._byte_by_byte(data)

    def _headers(self, _: str) -> None:
        self._byte_by_byte(b"HTTP/1.0 200 OK\r\nX: " + b"x" * 60000)

    def _byte_by_byte(self, data: bytes) -> None:
        for value in data:
            if self.server.closing.is_set():
                return
            self.wfile.write(bytes([value]))
            self.wfile.flush()
            time.sleep(DRIP_INTERVAL_S)

    def _endless(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.closing.is_set():
            self.wfile.write(bytes(2**16))

    def _to(self, address: str) -> None:
        self.send_response(302)
        self.send_header("Location", address)
        self.end_headers()


@contextmanager
def picture_server() -> Iterator[PictureServer]:
    """The running server."""
    with PictureServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.closing.set()
        server.released.set()
        server.shutdown()
