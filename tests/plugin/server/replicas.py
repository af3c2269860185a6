"""Two servers behind HAProxy, with the configuration of the documentation."""

import shutil
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from server_process import Server, free_port

CONFIGURATION = Path(__file__).parents[3] / "docs/haproxy.cfg"
COUNT = 2


def is_installed() -> bool:
    """Whether there is HAProxy."""
    return shutil.which("haproxy") is not None


class Replicas(Server):
    """Context manager: requests go to the balancer, as to one server.

    Attributes:
        servers: by their names in the configuration.
    """

    def __init__(self, model: Path, folder: Path, kind: type[Server] = Server, **environment: str):
        self.model, self.port = str(model), free_port()
        self._folder, self._stack = folder, ExitStack()
        logs = [folder / f"{index}.log" for index in range(COUNT)]
        self.servers = {
            f"gpu{index}": kind(model, log, **environment) for index, log in enumerate(logs)
        }

    def __enter__(self) -> "Replicas":
        with ExitStack() as stack:
            for server in self.servers.values():
                stack.enter_context(server)
            text = CONFIGURATION.read_text(encoding="utf-8").replace(":8080", f":{self.port}")
            for index, server in enumerate(self.servers.values()):
                text = text.replace(f":{8081 + index}", f":{server.port}")
            path = self._folder / "haproxy.cfg"
            path.write_text(text, encoding="utf-8")
            process = subprocess.Popen(["haproxy", "-db", "-f", path])
            stack.callback(process.wait, 10)
            stack.callback(process.terminate)
            self._wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _wait(self) -> None:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("The balancer did not start")
