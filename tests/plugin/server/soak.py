"""Load on one server from many clients: good, bad and impatient ones.

Run it by itself for a long soak: ``python tests/plugin/server/soak.py --seconds 300``. It ends
with exit status 1 if an answer differed from the one that the request gets alone, if a
request got no answer, or if memory grew.
"""

import argparse
import http.client
import itertools
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("", "moxin")]

from bodies import CHAT, answer_text, body, get, picture_data  # noqa: E402
from picture_server import PictureServer, picture_server  # noqa: E402
from replicas import Replicas  # noqa: E402
from server_process import MeasuredServer  # noqa: E402
from soak_requests import Request, bad_requests, good_requests, stream_text  # noqa: E402
from support import HF_CHECKPOINT, MESSAGES  # noqa: E402

ANSWER_TIMEOUT_S = 120
# The server keeps its last 1024 responses with their pictures, so memory grows for a long time.
ENVIRONMENT = {"MLX_VLM_RESPONSE_STORE_LIMIT": "32"}
SAMPLE_INTERVAL_S = 0.5
# Share of the time after which the server has received every kind of request.
WARM_UP = 0.3
# Memory after the warm-up may differ by this much between its first and last third.
GROWTH_MB = 15


@dataclass
class Report:
    """Results of a soak. ``rss_mb`` are samples of the server processes together."""

    counts: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def warm_rss_mb(self) -> list[float]:
        """Samples after the warm-up."""
        return self.rss_mb[int(len(self.rss_mb) * WARM_UP) :]

    @property
    def growth_mb(self) -> float:
        """Median of the last third of the samples after the warm-up, less the first third's."""
        third = max(1, len(self.warm_rss_mb) // 3)
        return median(self.warm_rss_mb[-third:]) - median(self.warm_rss_mb[:third])

    @property
    def is_good(self) -> bool:
        """Whether every answer is right, none is missing, and memory does not grow."""
        return not self.wrong and not self.lost and self.growth_mb < GROWTH_MB

    def lines(self) -> list[str]:
        """The report as text."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))
        tenth = max(1, len(self.rss_mb) // 10)
        medians = [median(self.rss_mb[i : i + tenth]) for i in range(0, len(self.rss_mb), tenth)]
        return [
            f"requests: {self.counts.total()} ({kinds})",
            f"wrong answers: {len(self.wrong)}; requests without an answer: {len(self.lost)}",
            *(line[:500] for line in self.wrong[:5]),
            *self.lost[:5],
            f"server: {self.summary}",
            f"memory in MB, by tenths of the time: {', '.join(f'{m:.0f}' for m in medians[:10])}",
            f"growth after the warm-up: {self.growth_mb:+.1f} MB",
        ]


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    output = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True
    )
    return int(output.stdout) / 1024


class Client(threading.Thread):
    """Sends one request after another until ``deadline``."""

    def __init__(self, soak: "Soak", seed: int):
        super().__init__()
        self._soak = soak
        self._random = random.Random(seed)

    def run(self) -> None:
        actions = (self._answer, self._stream, self._hang_up, self._leave, self._bad, self._link)
        while time.monotonic() < self._soak.deadline:
            (action,) = self._random.choices(actions, weights=(30, 30, 15, 5, 20, 10))
            connection = http.client.HTTPConnection(
                "127.0.0.1", self._soak.server.port, timeout=ANSWER_TIMEOUT_S
            )
            kind = action.__name__.strip("_")
            try:
                action(connection)
            except Exception as error:
                self._soak.lost(f"{kind}: {error!r}")
            finally:
                connection.close()
            self._soak.count(kind)

    def _send(self, connection: http.client.HTTPConnection, request: Request, **more: Any) -> None:
        data = request.data if request.data is not None else json.dumps({**request.body, **more})
        connection.request("POST", request.path, data, {"Content-Type": "application/json"})

    def _good(self) -> Request:
        return self._random.choice(self._soak.good)

    def _answer(self, connection: http.client.HTTPConnection) -> None:
        """A valid request that is not streamed."""
        request = self._good()
        self._send(connection, request)
        response = connection.getresponse()
        answer = json.loads(response.read())
        self._soak.compare(request, response.status, request.text(answer))

    def _stream(self, connection: http.client.HTTPConnection) -> None:
        """A valid request that is streamed."""
        request = self._good()
        self._send(connection, request, stream=True)
        response = connection.getresponse()
        self._soak.compare(request, response.status, stream_text(request.path, response))

    def _hang_up(self, connection: http.client.HTTPConnection) -> None:
        """A client that disconnects in the middle of a stream."""
        self._send(connection, self._good(), stream=True)
        response = connection.getresponse()
        for _ in itertools.islice(response, self._random.randrange(1, 12)):
            pass
        if connection.sock is not None:
            connection.sock.close()
        response.close()

    def _leave(self, connection: http.client.HTTPConnection) -> None:
        """A client that disconnects before it receives anything."""
        self._send(connection, self._good(), stream=self._random.random() < 0.5)
        time.sleep(self._random.random() / 10)

    def _link(self, connection: http.client.HTTPConnection) -> None:
        """A picture whose address works once, or slowly."""
        kind = self._random.choice(("once", "slow"))
        url = f"{self._soak.web.url}/{kind}/photo.png?{self._random.random()}"
        request = body(CHAT, self._soak.server.model, MESSAGES[0])
        part = {"type": "image_url", "image_url": {"url": url}}
        request["messages"][0]["content"].insert(0, part)
        self._send(connection, Request(f"{kind} link", CHAT, request))
        response = connection.getresponse()
        answer = answer_text(CHAT, json.loads(response.read()))
        self._soak.compare(self._soak.linked, response.status, answer)

    def _bad(self, connection: http.client.HTTPConnection) -> None:
        """An invalid request."""
        request = self._random.choice(self._soak.bad)
        self._send(connection, request)
        response = connection.getresponse()
        message = response.read().decode()
        if not 400 <= response.status < 500 or not json.loads(message):
            self._soak.wrong(f"{request.name}: HTTP {response.status} {message[:200]}")


class Soak:
    """``clients`` threads against a running ``server`` for ``seconds``."""

    web: PictureServer

    def __init__(self, server: MeasuredServer, seconds: float, clients: int):
        self.server = server
        # Those that compute, where `server` is a balancer.
        self._servers = list(getattr(server, "servers", {"": server}).values())
        self.good = good_requests(server.model)
        self.bad = bad_requests(server.model)
        self.report = Report()
        self._lock = threading.Lock()
        self._seconds, self._clients = seconds, clients
        about_photo = body(CHAT, server.model, MESSAGES[0], picture_data("photo"))
        self.linked = Request("a linked picture", CHAT, about_photo)
        asked = [*self.good, self.linked]
        self._alone = {request: self._ask_alone(request) for request in asked}

    def _ask_alone(self, request: Request) -> str:
        status, answer = self.server.post(request.path, request.body)
        assert status == 200, answer
        return request.text(answer)

    def compare(self, request: Request, status: int, text: str) -> None:
        if (status, text) != (200, self._alone[request]):
            self.wrong(f"{request.name}: HTTP {status} {text!r}, alone {self._alone[request]!r}")

    def count(self, kind: str) -> None:
        with self._lock:
            self.report.counts[kind] += 1

    def wrong(self, message: str) -> None:
        with self._lock:
            self.report.wrong.append(message)

    def lost(self, message: str) -> None:
        with self._lock:
            self.report.lost.append(message)

    def run(self) -> Report:
        """Load the server, wait until it is idle, and repeat the requests that were sent alone."""
        with picture_server() as self.web:
            return self._run()

    def _run(self) -> Report:
        self.deadline = time.monotonic() + self._seconds
        clients = [Client(self, seed) for seed in range(self._clients)]
        for client in clients:
            client.start()
        while time.monotonic() < self.deadline:
            self.report.rss_mb.append(sum(rss_mb(each.process.pid) for each in self._servers))
            time.sleep(SAMPLE_INTERVAL_S)
        for client in clients:
            client.join(timeout=2 * ANSWER_TIMEOUT_S)
            if client.is_alive():
                self.lost("a client still waits for an answer")
        self._wait_until_idle()
        for request in self.good:
            self.compare(request, 200, self._ask_alone(request))
        return self.report

    def _wait_until_idle(self) -> None:
        """Wait until no request is running, including those of clients that disconnected."""
        for _ in range(100):
            summaries = [get(each, "/metrics")["summary"] for each in self._servers]
            self.report.summary = {
                name: [each[name] for each in summaries] if len(summaries) > 1 else value
                for name, value in summaries[0].items()
            }
            self.report.summary["in_flight"] = sum(each["in_flight"] for each in summaries)
            if self.report.summary["in_flight"] == 0:
                return
            time.sleep(0.2)
        self.lost("the server still counts requests as under way")


def main() -> None:
    parser = argparse.ArgumentParser(description="Load one server from many clients.")
    parser.add_argument("--replicas", action="store_true", help="two servers behind HAProxy")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=16)
    arguments = parser.parse_args()
    from mlx_vlm import convert

    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        checkpoint = folder / "checkpoint"
        convert(str(HF_CHECKPOINT), str(checkpoint), dtype="float32", trust_remote_code=False)
        if arguments.replicas:
            started = Replicas(checkpoint, folder, MeasuredServer, **ENVIRONMENT)
        else:
            started = MeasuredServer(checkpoint, folder / "log.txt", **ENVIRONMENT)
        with started as server:
            report = Soak(server, arguments.seconds, arguments.clients).run()
    print(*report.lines(), sep="\n")
    sys.exit(not report.is_good)


if __name__ == "__main__":
    main()
