"""Run the commands of README and docs: ``make pages``, or ``python -m pages [PAGE ...]``.

The commands of a page run in order in a separate folder with small models and data, as typed by a
reader. Names of large models are replaced by small ones; commands that need a network, a GPU, a
browser or minutes are skipped with the reason. Status 1 if a command failed.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pages.commands import PAGES, ROOT, commands
from pages.materials import CONVERSIONS, copy_folder, write_materials
from pages.reader import FAILED, OUT, RAN, Outcome, Reader


def run_page(page: Path, folder: Path) -> Iterable[Outcome]:
    """Run the commands of ``page`` in ``folder``."""
    reader = Reader(folder)
    try:
        for command in commands(page):
            yield reader.run(command)
    finally:
        reader.close()


def report(outcomes: list[Outcome]) -> int:
    """Print what failed and what was left out, and why; returns the exit status."""
    table = Table("page", "command", "left out since it")
    for outcome in outcomes:
        command = outcome.command
        if outcome.state == OUT:
            table.add_row(command.page, Text(command.title), outcome.reason)
        if outcome.state == FAILED:
            print(f"\n{command.page}: {command.title}\n{outcome.reason}")
    Console().print(table)
    states = [outcome.state for outcome in outcomes]
    print(", ".join(f"{states.count(state)} {state}" for state in (RAN, FAILED, OUT)))
    return 1 if FAILED in states else 0


def existing_page(name: str) -> Path:
    """The page that the command line names.

    Raises:
        argparse.ArgumentTypeError: if there is none in the repository.
    """
    page = Path(name).resolve()
    if not page.is_file() or not page.is_relative_to(ROOT):
        raise argparse.ArgumentTypeError(f"no page of this repository: {name[:200]}")
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pages named, or all; returns the exit status."""
    parser = argparse.ArgumentParser("python -m pages", description=__doc__)
    parser.add_argument("pages", nargs="*", type=existing_page, metavar="PAGE", default=PAGES)
    pages = parser.parse_args(argv).pages
    outcomes = []
    with tempfile.TemporaryDirectory() as temporary:
        start = Path(temporary) / "start"
        start.mkdir()
        write_materials(start)
        for command in CONVERSIONS:
            reason = Reader(start).type(command)
            if reason:
                raise SystemExit(f"error: the small model could not be made: {reason}")
        for number, page in enumerate(pages):
            folder = Path(temporary) / str(number)
            copy_folder(start, folder, str(page.relative_to(ROOT)))
            for outcome in run_page(page, folder):
                outcomes.append(outcome)
                command = outcome.command
                print(f"{outcome.state:9}{command.page}: {command.title}", flush=True)
    return report(outcomes)


if __name__ == "__main__":
    sys.exit(main())
