"""The commands of a page: those of its code blocks, and complete ones within its text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "conversion" / "README.md",
    ROOT / "tests" / "moxin_tiny" / "README.md",
    ROOT / "tests" / "openvla_tiny" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# A block of shell commands, of a session or of Python at the margin, or a complete command in the
# text: with an option and its value. Indented blocks are excerpts of files.
_SHOWN = re.compile(
    r"^```(?P<language>bash|console|python)\n(?P<block>.*?)^```"
    r"|`(?P<inline>(?:cd tests && )?python -m [^`]*\s--(?:help|[^\s`]+\s+\w)[^`]*)`",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: path of the page, relative to the repository.
        text: a shell command in one line, or a block of Python.
        is_python: which of the two it is.
        output: what the page shows below the command, in a session.
    """

    page: str
    text: str
    is_python: bool = False
    output: str = ""

    @property
    def title(self) -> str:
        """One line: the command, or the first line of the block that is not an import."""
        if not self.is_python:
            return " ".join(self.text.split())
        lines = [line for line in self.text.splitlines() if line and "import" not in line]
        return f"Python: {lines[0]} ..."


def commands(page: Path) -> Iterator[Command]:
    """The commands of ``page`` in their order, continued lines joined, comments dropped."""
    name = str(page.relative_to(ROOT))
    for shown in _SHOWN.finditer(page.read_text(encoding="utf-8")):
        if shown["language"] == "python":
            yield Command(name, shown["block"], is_python=True)
            continue
        if shown["language"] == "console":
            for session in re.split(r"^\$ ", shown["block"], flags=re.MULTILINE)[1:]:
                text, _, output = session.partition("\n")
                yield Command(name, text, output=output)
            continue
        if shown["inline"]:
            yield Command(name, " ".join(shown["inline"].split()))
            continue
        for line in shown["block"].replace("\\\n", " ").splitlines():
            command = re.sub(r"\s#\s.*$", "", line).strip()
            if command and not command.startswith("#"):
                yield Command(name, command)
