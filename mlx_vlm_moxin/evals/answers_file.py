"""The answers file: one JSON line per example, written as soon as there is an answer.

A run that was killed goes on where its file ends. A last line that was only half written
is removed; several models and tasks may share a file.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mlx_vlm_moxin.evals.example import Answer

_ANSWER = TypeAdapter(Answer)


def default_path(model: str) -> Path:
    """Where a model's answers are kept if the user names no file."""
    return Path("results/eval") / f"{Path(model).name or 'model'}.jsonl"


def _drop_half_line(path: Path) -> None:
    """End the file with its last whole line."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        size = end
        while size:
            start = max(0, size - (1 << 16))
            file.seek(start)
            found = file.read(size - start).rfind(b"\n")
            if found >= 0:
                size = start + found + 1
                break
            size = start
        if size != end:
            file.truncate(size)


def _parse(line: bytes, where: str) -> Answer:
    try:
        return _ANSWER.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(
            f"{where} is not an answer ({first['msg'][:100]}); choose another --output, or "
            "remove that line"
        ) from error


class AnswersFile:
    """Answers in a file, read once and then appended to.

    Args:
        path: of the file, which need not exist.

    Raises:
        OSError: if the file cannot be read or written.
        ValueError: naming a line that is no answer.
    """

    def __init__(self, path: Path):
        self.path = path
        self._answers: dict[tuple[str, str, str], Answer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        # Before a model is loaded, so that a file that cannot be written costs no time.
        path.open("ab").close()
        _drop_half_line(path)
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    self._keep(_parse(line, f"{path}, line {number},"))

    def _keep(self, answer: Answer) -> None:
        self._answers[answer.weights, answer.task, answer.id] = answer

    def get(self, weights: str, task: str, example_id: str) -> Answer | None:
        """The answer of these weights to an example, if they have given one."""
        return self._answers.get((weights, task, example_id))

    def add(self, answers: Iterable[Answer]) -> None:
        """Append answers; once this returns, killing the process does not lose them."""
        answers = list(answers)
        lines = [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers]
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(lines))
        for answer in answers:
            self._keep(answer)
