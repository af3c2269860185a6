"""``python -m bench.serve CHECKPOINT``, run in ``tests``: the server under clients with pictures.

Starts ``mlx_vlm_moxin server``, with and without this package's kernels, or stock
``mlx_vlm.server`` with a model of mlx-vlm's own that is as large. Has 1, 8, 32 and 64 clients ask
one question after another, each about a picture that the server has not seen, answers streamed or
(``--whole``) not. Prints the tokens per second of all clients together, the time to the first
token, and on Linux the CPU time of the server for a token.
"""

import argparse
import base64
import http.client
import io
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from server_process import MeasuredServer

WORDS = " ".join(f"w{100 + index}" for index in range(30))
TIMEOUT_S = 120
WIDTH, HEIGHT = 640, 480


class MoxinServer(MeasuredServer):
    """This package's server with its default restrictions."""

    command = ("mlx_vlm_moxin", "server")


def picture(seed: int) -> str:
    """A JPEG that takes as long to decode as a photograph, as a data URI."""
    values = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).resize((WIDTH, HEIGHT)).save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def cpu_seconds(process: int) -> float | None:
    """CPU time that a process has used; None where there is no ``/proc``."""
    try:
        line = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # Fields 14 and 15 of proc_pid_stat(5); the second one, a name, ends with the last bracket.
    user, system = line.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Load:
    """``clients`` threads that send one request after another for ``seconds``.

    Attributes:
        first_token: seconds of each request that began to be answered in time.
        tokens: number of tokens that arrived in time.
        errors: messages of failed requests.
    """

    def __init__(
        self,
        server: MeasuredServer,
        clients: int,
        seconds: float,
        max_tokens: int,
        is_streamed: bool = True,
    ):
        self._server, self.max_tokens, self._seconds = server, max_tokens, seconds
        self._is_streamed, self._all_tokens = is_streamed, 0
        self._lock, self._seed = threading.Lock(), 1000 * clients
        self.first_token: list[float] = []
        self.tokens = 0
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._client) for _ in range(clients)]

    def run(self) -> dict[str, Any]:
        """Tokens per second, seconds to the first token, and CPU seconds for a token."""
        cpu_before = cpu_seconds(self._server.process.pid)
        self._start = time.monotonic()
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        cpu_after = cpu_seconds(self._server.process.pid)
        found = {"clients": len(self._threads), "tokens_per_second": self.tokens / self._seconds}
        found["requests"] = len(self.first_token)
        if cpu_before is not None and cpu_after is not None and self._all_tokens:
            found["cpu_seconds_per_token"] = (cpu_after - cpu_before) / self._all_tokens
        if self.first_token:
            found["first_token_median"] = statistics.median(self.first_token)
            found["first_token_worst"] = max(self.first_token)
        return {**found, "errors": self.errors[:3]}

    def _client(self) -> None:
        while time.monotonic() < self._start + self._seconds:
            with self._lock:
                self._seed += 1
                seed = self._seed
            try:
                self.ask(picture(seed), self._start)
            except Exception as error:
                with self._lock:
                    self.errors.append(repr(error)[:200])
                return

    def ask(self, uri: str, begin: float) -> None:
        """One question about a picture.

        Args:
            uri: the picture.
            begin: when the load began; tokens that arrive too long after it do not count.

        Raises:
            RuntimeError: if the server refused the request.
        """
        content = [
            {"type": "image_url", "image_url": {"url": uri}},
            {"type": "text", "text": WORDS},
        ]
        body = {
            "model": self._server.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": 1,
            "stream": self._is_streamed,
        }
        start = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {response.read()[:200]!r}")
        is_first = True
        for line in response:
            if self._is_streamed and not line.startswith(b"data: {"):
                continue
            choices = json.loads(line.removeprefix(b"data: ")).get("choices") or [{}]
            message = choices[0].get("delta" if self._is_streamed else "message") or {}
            # A token is a word.
            tokens = len((message.get("content") or "").split())
            now = time.monotonic()
            with self._lock:
                self._all_tokens += tokens
                if tokens and now < begin + self._seconds:
                    self.tokens += tokens
                    if is_first:
                        self.first_token.append(now - start)
            is_first = is_first and not tokens
        connection.close()


def main(argv: Sequence[str] | None = None) -> None:
    """The command; the file of ``--json`` always holds the results so far."""
    parser = argparse.ArgumentParser("python -m bench.serve", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="see python -m bench.full_size")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[8.0], help="for all, or for each of --clients"
    )
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--whole", action="store_true", help="answers that are not streamed")
    parser.add_argument("--kernels", nargs="*", choices=["on", "off"], default=["on", "off"])
    parser.add_argument("--other", type=Path, help="also stock mlx_vlm.server with this model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    args = parser.parse_args(argv)
    if len(args.seconds) == 1:
        args.seconds *= len(args.clients)
    if len(args.seconds) != len(args.clients):
        parser.error("--seconds takes one number, or as many as --clients")
    sides: list[tuple[str, type[MeasuredServer], Path, dict[str, str]]] = [
        (f"kernels {kernels}", MoxinServer, args.checkpoint, _switch(kernels == "on"))
        for kernels in args.kernels
    ]
    if args.other:
        sides.append((f"mlx_vlm.server, {args.other.name}", MeasuredServer, args.other, {}))
    done: dict[str, list[dict[str, Any]]] = {}
    print("| server | clients | tokens/s | first token, median | worst | CPU time of a token |")
    print("|---|--:|--:|--:|--:|--:|", flush=True)
    for name, kind, checkpoint, environment in sides:
        for found in measure(kind, checkpoint, environment, args):
            done.setdefault(name, []).append(found)
            cells = [name, str(found["clients"]), f"{found['tokens_per_second']:,.0f}"]
            for key in ("first_token_median", "first_token_worst"):
                cells.append(f"{found[key]:.2f} s" if key in found else "")
            cpu = found.get("cpu_seconds_per_token")
            cells.append(f"{1e6 * cpu:,.0f} us" if cpu else "")
            errors = f" {found['errors']}" if found["errors"] else ""
            print(f"| {' | '.join(cells)} |{errors}", flush=True)
            if args.json:
                args.json.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")


def _switch(are_on: bool) -> dict[str, str]:
    return {"MLX_VLM_MOXIN_KERNELS": str(int(are_on))}


def measure(
    kind: type[MeasuredServer],
    checkpoint: Path,
    environment: dict[str, str],
    args: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Start a server, and load it with each number of clients."""
    with (
        tempfile.TemporaryDirectory() as folder,
        kind(checkpoint, Path(folder) / "log.txt", **environment) as server,
    ):
        # Compiles what the first requests need; batches grow and shrink through all sizes.
        Load(server, max(args.clients), 1.0, 16).run()
        for clients, seconds in zip(args.clients, args.seconds):
            yield Load(server, clients, seconds, args.max_tokens, not args.whole).run()


if __name__ == "__main__":
    main()
