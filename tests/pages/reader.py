"""Runs a page's commands in a shell, and keeps a server running meanwhile."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from pages.commands import Command
from pages.stand_ins import PORT, prepared, reason_to_leave_out

TIMEOUT = 600
# Characters of a failed command's output that are shown.
MAX_REASON = 500

RAN, FAILED, OUT = "ran", "failed", "left out"


@dataclass
class Outcome:
    """Outcome of a command: ``RAN``, ``FAILED`` or ``OUT``, and why."""

    command: Command
    state: str
    reason: str = ""


def _serves(command: str) -> bool:
    is_server = re.search(r"\bserver\b", command) is not None
    return is_server and re.search(r"curl|--help", command) is None


def _wait_for(process: subprocess.Popen) -> str:
    """Wait until the server answers; returns the reason if it does not, else an empty text."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        if process.poll() is not None:
            return process.stdout.read()[-MAX_REASON:] or "ended without a word"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1).close()
            return ""
        except urllib.error.HTTPError:
            return ""
        except OSError:
            time.sleep(0.2)
    return "no answer in time"


class Reader:
    """A shell in ``folder``."""

    def __init__(self, folder: Path):
        self._folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
        self._server: subprocess.Popen | None = None
        self._python = ""  # the blocks of Python so far, whose names later ones may use

    def run(self, command: Command) -> Outcome:
        """Run one command as on the page."""
        reason = reason_to_leave_out(command)
        if reason is not None:
            return Outcome(command, OUT, reason)
        typed = prepared(command)
        if command.is_python:
            self._python += typed
            reason = self.type(self._python, is_python=True)
        else:
            reason = (
                self._serve(typed) if _serves(typed) else self.type(typed, False, command.output)
            )
        return Outcome(command, FAILED if reason else RAN, reason)

    def type(self, command: str, is_python: bool = False, output: str = "") -> str:
        """Run a command to its end; the last of its output if it fails, else nothing.

        Printing anything but ``output``, if the page shows one, is a failure too.
        """
        program = [sys.executable, "-c"] if is_python else ["bash", "-c"]
        try:
            result = subprocess.run(
                [*program, command],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return f"did not end within {TIMEOUT} s"
        if result.returncode == 0 and output in ("", result.stdout):
            return ""
        output = (result.stdout + result.stderr)[-MAX_REASON:]
        return output or f"ended with status {result.returncode}"

    def _serve(self, command: str) -> str:
        self.close()
        if "--port" not in command:
            command += f" --port {PORT}"
        self._server = subprocess.Popen(
            ["bash", "-c", command],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return _wait_for(self._server)

    def close(self) -> None:
        """End the server, if one is running."""
        if self._server is not None:
            if self._server.poll() is None:
                os.killpg(self._server.pid, signal.SIGTERM)
            self._server.wait(timeout=60)
            self._server = None
