"""Stock ``mlx_vlm.server`` as a process on a free port of this machine."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from warm_processes import command as warm_command
from warm_processes import offline

START_TIMEOUT_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def data_uri(image: str) -> str:
    """The file ``image`` as the data URI that the OpenAI API takes."""
    encoded = base64.b64encode(Path(image).read_bytes()).decode()
    return f"data:image/png;base64,{encoded}"


def user_message(text: str, image: str | None = None) -> dict[str, Any]:
    """An OpenAI chat message with an optional picture (a file)."""
    content = [{"type": "text", "text": text}]
    if image is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": data_uri(image)}})
    return {"role": "user", "content": content}


class Server:
    """Context manager: the server answers when it is entered and is gone afterwards."""

    # What follows ``python -m``.
    command = ("mlx_vlm.server",)
    # Whether it is a new process instead of a forked one, so that `process.pid` is the server's.
    is_new_process = False

    def __init__(self, model: Path, log: Path, *options: str, **environment: str):
        self.model, self.port = str(model), free_port()
        arguments = ["-m", *self.command, "--model", self.model]
        arguments += ["--host", "127.0.0.1", "--port", str(self.port), *options]
        self._log = log.open("wb")
        variables = {**offline(os.environ), **environment}
        command = [sys.executable, *arguments]
        if not self.is_new_process:
            command = warm_command(*arguments, environment=variables)
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=variables
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the server has written until now."""
        return Path(self._log.name).read_text(encoding="utf-8")

    def __enter__(self) -> "Server":
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return self
            except OSError:
                time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"The server did not start:\n{self.log}")

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self._log.close()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and decoded JSON of a POST; bytes go out as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def chat(self, *messages: dict[str, Any], **parameters: Any) -> dict[str, Any]:
        """Body of a greedy ``/v1/chat/completions`` answer, which must succeed."""
        body = {"model": self.model, "messages": messages, "temperature": 0, **parameters}
        status, answer = self.post("/v1/chat/completions", body)
        assert status == 200, answer
        return answer

    def answer(self, *messages: dict[str, Any], **parameters: Any) -> str:
        """Text of that answer."""
        return self.chat(*messages, **parameters)["choices"][0]["message"]["content"]


class MeasuredServer(Server):
    """A server whose memory can be read by its process id."""

    is_new_process = True
