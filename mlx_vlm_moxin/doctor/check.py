"""The result of a check, and the one way to run one.

Nothing here or in the modules of checks imports MLX or the model at once, since that may be what
does not work.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

# Characters of an unexpected error's message.
MAX_MESSAGE = 400

OK, WARNING, FAILED = "ok", "warning", "failed"


@dataclass
class Check:
    """What was found.

    Attributes:
        name: of what was checked.
        status: ``OK``, ``WARNING`` (something to know) or ``FAILED``.
        found: in a sentence.
        advice: what to do about it; empty if there is nothing to do.
        values: the same for programs.
    """

    name: str
    status: str
    found: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For the screen: what was found and, indented, the advice."""
        lines = [f"{self.status:<8} {self.name:<16} {self.found}"]
        return lines + ([f"{'':<25} -> {self.advice}"] if self.advice else [])

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def run(name: str, check: Callable[[], Check]) -> Check:
    """The result of ``check``; an exception is one too, since anything may be broken here."""
    try:
        return check()
    except Exception as error:
        message = " ".join(str(error).split())[:MAX_MESSAGE]
        return Check(name, FAILED, f"{type(error).__name__}: {message}")
