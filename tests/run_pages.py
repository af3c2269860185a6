"""Run the commands of README and docs: ``make pages``, or ``python tests/run_pages.py [PAGE ...]``.

The commands of a page's ``bash`` blocks run one after the other in a fresh folder with a small
model, as a reader would type them. Names of large models become the bundled one's; what needs a
network, a GPU, a browser or minutes is left out with the reason. Status 1 if a command failed.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "moxin_tiny"
PORT = 8123
TIMEOUT = 600
# What a page says -> what is run here.
STAND_INS = {
    r"moxin-org/Moxin-7B-VLM-8bit-mlx|bobchenyx/Moxin-7B-VLM-hf": str(TINY / "checkpoint"),
    r"\bphoto\.jpg\b": "tests/moxin_tiny/demo.png",
    r"--port \d+": f"--port {PORT}",
    r"localhost:\d+": f"localhost:{PORT}",
    r"--max-tokens \d+": "--max-tokens 8",
    r"(mlx_vlm\.train .*)": r"\1 --iters 2 --batch-size 1",
    r"(mlx_lm benchmark .*)": r"\1 --num-trials 1",
}
# Commands that do not run here, and why.
LEFT_OUT = {
    r"^(pip install|git clone|make |brew |docker |npm )": "installs or builds; the tests do that",
    r"moxin-org/Moxin-7B-VLM( |$)|TRI-ML/|openvla/|moojink/": "downloads a full-size model",
    r"--upload-repo|upload ": "uploads to the Hub",
    r"cuda|CUDA_|nvidia|NVIDIA": "needs an NVIDIA GPU",
    r"chat_ui": "needs a browser",
    r"mlx_vlm(\.| )chat\b": "reads from the terminal",
    r"mlx\.launch": "needs two machines",
    r"mlx_audio|GLM-4|glm-4": "another model, downloaded from the Hub",
    r"DRAFTER|SCRIPT|nginx|haproxy|litellm": "stands for the reader's own file or program",
    r"mlx_vlm\.evals|\beval\b|evals\.pope": "needs a data set from the Hub",
    r"moxin_tiny\.(train|evaluate)|openvla_tiny\.(train|evaluate)|bench": "takes minutes",
}


@dataclass
class Outcome:
    """What became of a command: ``ran``, ``failed`` or ``left out``, and why."""

    page: str
    command: str
    state: str
    reason: str = ""


def commands(page: Path) -> Iterator[str]:
    """The commands of a page's ``bash`` blocks, continued lines joined, comments dropped."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s#\s.*$", "", line).strip()
            if command and not command.startswith("#"):
                yield command


def prepared(command: str) -> str:
    """``command`` with its stand-ins."""
    for pattern, replacement in STAND_INS.items():
        command = re.sub(pattern, replacement, command)
    return command


def _serves(command: str) -> bool:
    return re.search(r"\bserver\b", command) is not None and "curl" not in command


def _wait_for(process: subprocess.Popen) -> str:
    """Wait until the server answers; why it does not, else nothing."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        if process.poll() is not None:
            return process.stdout.read()[-500:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1).close()
            return ""
        except urllib.error.HTTPError:
            return ""
        except OSError:
            time.sleep(0.5)
    return "no answer in time"


class Reader:
    """Types commands into a shell in ``folder``, and keeps one server running at a time."""

    def __init__(self, folder: Path):
        self._folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
        self._server: subprocess.Popen | None = None

    def run(self, page: str, command: str) -> Outcome:
        """Run one command as the page has it."""
        for pattern, reason in LEFT_OUT.items():
            if re.search(pattern, command):
                return Outcome(page, command, "left out", reason)
        typed = prepared(command)
        if _serves(typed):
            reason = self._serve(typed)
        else:
            reason = self._type(typed)
        return Outcome(page, command, "failed" if reason else "ran", reason)

    def _type(self, command: str) -> str:
        try:
            result = subprocess.run(
                ["bash", "-c", command],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return f"did not end within {TIMEOUT} s"
        return "" if result.returncode == 0 else (result.stdout + result.stderr)[-500:]

    def _serve(self, command: str) -> str:
        self.close()
        if "--port" not in command:
            command += f" --port {PORT}"
        self._server = subprocess.Popen(
            ["bash", "-c", f"exec {command}" if "=" not in command.split()[0] else command],
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


def prepare(folder: Path) -> None:
    """What a reader has after ``make demo``: ``./moxin``, and the tests' small files."""
    (folder / "tests").mkdir()
    shutil.copytree(TINY, folder / "tests" / "moxin_tiny")
    shutil.copytree(ROOT / "conversion", folder / "conversion")
    data = folder / "DATA"
    data.mkdir()
    shutil.copy(TINY / "demo.png", data / "demo.png")
    row = (
        '{"images": ["demo.png"], "messages": [{"role": "user", "content": "Where is the star?"}, '
        '{"role": "assistant", "content": "top right"}]}\n'
    )
    (data / "train.jsonl").write_text(row * 4, encoding="utf-8")
    text = '{"text": "A large red circle and a small blue star. "}\n'
    (folder / "LMDATA").mkdir()
    (folder / "LMDATA" / "train.jsonl").write_text(text * 20000, encoding="utf-8")
    convert = "python -m mlx_vlm convert --hf-path tests/moxin_tiny/checkpoint --mlx-path moxin -q"
    reason = Reader(folder)._type(f"{convert} --q-bits 8")
    if reason:
        raise SystemExit(f"error: the small model could not be made: {reason}")


def main() -> int:
    """Run the pages named, or all; print a table of what did not run."""
    pages = [Path(name) for name in sys.argv[1:]]
    pages = pages or [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        start.mkdir()
        prepare(start)
        for page in sorted(pages):
            own = Path(folder) / page.stem
            shutil.copytree(start, own)
            reader = Reader(own)
            try:
                for command in commands(page):
                    outcomes.append(reader.run(page.name, command))
                    print(f"{outcomes[-1].state:9}{page.name}: {command}", flush=True)
            finally:
                reader.close()
    table = Table("page", "command", "state", "reason")
    for outcome in outcomes:
        if outcome.state != "ran":
            table.add_row(outcome.page, outcome.command, outcome.state, outcome.reason)
    Console().print(table)
    states = [outcome.state for outcome in outcomes]
    print(", ".join(f"{states.count(s)} {s}" for s in ("ran", "failed", "left out")))
    return 1 if "failed" in states else 0


if __name__ == "__main__":
    sys.exit(main())
