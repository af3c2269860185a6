"""Long-running commands in separate processes, which end with the test."""

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from warm_processes import command as warm_command
from warm_processes import offline

START_TIMEOUT_S = 180


@contextmanager
def running(*arguments: str, url: str, log: Path, **environment: str) -> Iterator[None]:
    """``python -m ...`` in the background; entered once ``url`` answers, ended afterwards."""
    environment = {**offline(os.environ), **environment}
    command = warm_command("-m", *arguments, environment=environment)
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
