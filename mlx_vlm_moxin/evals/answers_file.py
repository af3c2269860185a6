"""The answers file: one JSON line per example, written as soon as there is an answer.

A run that was killed resumes where its file ends. An incomplete last line is removed. Several
models and tasks may share a file.
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
    """The path of a model's answers if the user gives none."""
    return Path("results/eval") / f"{Path(model).name or 'model'}.jsonl"


def _drop_half_line(path: Path) -> None:
    """Remove an incomplete last line from the file."""
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
    """Answers in a file, which is read once and then appended to.

    Args:
        path: the file, which need not exist.

    Raises:
        OSError: if the file cannot be read or written.
        ValueError: naming a line that is not an answer.
    """

    def __init__(self, path: Path):
        self.path = path
        self._answers: dict[tuple[str, str, str], Answer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        # Open for writing before a model is loaded, so that an error is reported immediately.
        path.open("ab").close()
        _drop_half_line(path)
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    self._keep(_parse(line, f"{path}, line {number},"))

    def _keep(self, answer: Answer) -> None:
        self._answers[answer.weights, answer.task, answer.id] = answer

    def get(self, weights: str, task: str, example_id: str) -> Answer | None:
        """The stored answer of these weights to an example; None if there is none."""
        return self._answers.get((weights, task, example_id))

    def add(self, answers: Iterable[Answer]) -> None:
        """Append answers; they are flushed, so killing the process later does not lose them."""
        answers = list(answers)
        lines = [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers]
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(lines))
        for answer in answers:
            self._keep(answer)
