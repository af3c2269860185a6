"""Ask a running server about the bundled picture with widely used clients.

``make clients`` installs the clients in a separate environment and runs this. Exit status 1 if an
answer is wrong or missing.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parents[1]))

from moxin_tiny import CHECKPOINT, DEMO  # noqa: E402
from moxin_tiny.demo import QUESTIONS  # noqa: E402
from server_process import Server  # noqa: E402

TIMEOUT_S = 600
Answers = dict[tuple[str, str], dict[str, str]]


class OurServer(Server):
    """The server, started as in README."""

    command = ("mlx_vlm_moxin", "server")


def ask(command: list[str], stdin: str, **options: Any) -> Answers:
    """The answers of one program, by client and API, then by question."""
    result = subprocess.run(
        command, input=stdin, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, **options
    )
    answers: Answers = defaultdict(dict)
    for line in result.stdout.splitlines():
        # Some clients also print hints.
        if line.startswith("{"):
            said = json.loads(line)
            answers[said["client"], said["way"]][said["question"]] = said["answer"]
    if result.returncode != 0 or not answers:
        answers[Path(command[0]).name, f"exit status {result.returncode}"] = {}
    return answers


def ask_all(server: Server, environment: Path) -> Answers:
    """The answers of every client that is installed in ``environment``."""
    questions = [question for question, _ in QUESTIONS]
    task = {"url": server.url, "model": server.model, "questions": questions}
    picture = base64.b64encode(DEMO.read_bytes()).decode()
    python = ask(
        [str(environment / "bin" / "python"), str(FOLDER / "ask_clients_python.py")],
        json.dumps({**task, "picture": picture}),
        # Without this, litellm first downloads a list of prices.
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )
    # Node may be installed in the environment.
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "TASK": json.dumps({**task, "picture": str(DEMO)})}
    node = ask(
        ["node", "--input-type=module"],
        (FOLDER / "ask_clients_node.mjs").read_text(encoding="utf-8"),
        cwd=environment,
        env=variables,
    )
    return {**python, **node}


def table(answers: Answers) -> tuple[Table, bool]:
    """A row for each client and API, and whether every answer is right."""
    expected = dict(QUESTIONS)
    shown = Table("Client", "Way", "Right", "What was wrong")
    is_good = True
    for (client, way), given in answers.items():
        wrong = [
            f"{question} {given.get(question)!r}"[:200]
            for question, answer in expected.items()
            if (given.get(question) or "").strip() != answer
        ]
        is_good = is_good and not wrong
        right = len(expected) - len(wrong)
        shown.add_row(client, way, f"{right}/{len(expected)}", wrong[0] if wrong else "")
    return shown, is_good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("environment", type=Path, help="where the clients are installed")
    environment = parser.parse_args().environment.resolve()
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log.txt"
        with OurServer(CHECKPOINT, log) as server:
            answers = ask_all(server, environment)
        shown, is_good = table(answers)
        Console().print(shown)
        if not is_good:
            print(log.read_text(encoding="utf-8")[-4000:])
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
