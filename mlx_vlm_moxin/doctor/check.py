"""The result of a check, and the function that runs one.

This module and the modules of checks import MLX and the model only inside functions, since that
import may be what fails.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

# Maximum characters of an unexpected error's message.
MAX_MESSAGE = 400

OK = "ok"
WARNING = "warning"
FAILED = "failed"


@dataclass
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        status: ``OK``, ``WARNING`` (something to know) or ``FAILED``.
        found: the result in one sentence.
        advice: what to do about it; empty if there is nothing to do.
        values: the same facts as values for programs.
    """

    name: str
    status: str
    found: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Lines for the screen: the result and, indented, the advice."""
        lines = [f"{self.status:<8} {self.name:<16} {self.found}"]
        return lines + ([f"{'':<25} -> {self.advice}"] if self.advice else [])

    def to_dict(self) -> dict[str, Any]:
        """The result for ``--json``."""
        return asdict(self)


def run(name: str, check: Callable[[], Check]) -> Check:
    """The result of ``check``; any exception counts as failed, since anything may be broken."""
    try:
        return check()
    except Exception as error:
        message = " ".join(str(error).split())[:MAX_MESSAGE]
        return Check(name, FAILED, f"{type(error).__name__}: {message}")
