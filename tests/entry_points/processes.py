"""Long-running commands in separate processes, which end with the test."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 180


@contextmanager
def running(*arguments: str, url: str, log: Path, **environment: str) -> Iterator[None]:
    """``python -m ...`` in the background; entered once ``url`` answers, ended afterwards."""
    command = [sys.executable, "-m", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _wait_for(url, process, log)
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"Nothing answers at {url}:\n{log.read_text(errors='replace')}")
