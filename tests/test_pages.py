"""``make pages`` runs a page's commands or says why not, and fails if a command fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import __main__ as program
from pages.commands import PAGES, ROOT, Command, commands
from pages.reader import FAILED, OUT, RAN, Outcome, Reader
from pages.stand_ins import LEFT_OUT, STAND_INS, prepared, reason_to_leave_out

ALL = [command for page in PAGES for command in commands(page)]


def test_every_page_is_read():
    written = {*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")} - {ROOT / "CHANGELOG.md"}
    assert written <= {*PAGES}
    assert len(ALL) > 80


def test_blocks_tables_and_code_within_text_are_commands(tmp_path, monkeypatch):
    monkeypatch.setattr("pages.commands.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "`python -m mlx_vlm` alone is a name, `python -m mlx_vlm generate \n--model x` is not.\n"
        "```bash\n# a remark\nfirst --a \\\n    --b    # why\n\nsecond\n```\n"
        "| cell | `python -m y -q --z 1` |\n`python -m v --switch` and `python -m w --c d`\n"
        "```python\nimport x\n\nx.run()\n```\n"
        "    ```python\n    excerpt\n    ```\n```json\n{}\n```\n"
        "```console\n$ third\none\ntwo\n$ fourth\n```\n",
        encoding="utf-8",
    )
    found = [*commands(page)]
    assert [command.title for command in found] == [
        *(
            "python -m mlx_vlm generate --model x",
            "first --a --b",
            "second",
            "python -m y -q --z 1",
            "python -m w --c d",
        ),
        *("Python: x.run() ...", "third", "fourth"),
    ]
    assert [command.is_python for command in found] == [False] * 5 + [True] + [False] * 2
    assert [command.output for command in found[-2:]] == ["one\ntwo\n", ""]


@pytest.mark.parametrize("pattern", [*STAND_INS, *LEFT_OUT])
def test_each_exception_is_for_an_existing_command(pattern):
    texts = [prepared(command) + command.text for command in ALL]
    assert any(re.search(pattern, text, re.MULTILINE) for text in texts)


def test_most_commands_run():
    left_out = [command for command in ALL if reason_to_leave_out(command)]
    assert len(left_out) < len(ALL) / 2


def test_a_command_that_fails_is_shown_with_its_end_and_the_status_is_1(tmp_path, capsys):
    reader = Reader(tmp_path)
    outcomes = [
        reader.run(Command("page.md", text, is_python))
        for text, is_python in (
            ("echo fine > file", False),
            ("cat file", False),
            ("echo because; exit 3", False),
            ("import sys\n", True),
            ("sys.exit('nothing')\n", True),
            ("make demo", False),
        )
    ]
    assert [outcome.state for outcome in outcomes] == [RAN, RAN, FAILED, RAN, FAILED, OUT]
    assert program.report(outcomes) == 1
    shown = capsys.readouterr().out
    assert "page.md: echo because; exit 3\nbecause\n" in shown
    assert "nothing" in shown
    assert shown.endswith("3 ran, 2 failed, 1 left out\n")
    assert program.report([Outcome(Command("page.md", "true"), RAN)]) == 0


def test_another_output_than_the_page_shows_is_a_failure(tmp_path):
    reader = Reader(tmp_path)
    right = Command("page.md", "echo a circle", output="a circle\n")
    assert reader.run(right).state == RAN
    outcome = reader.run(Command("page.md", "echo a star", output="a circle\n"))
    assert (outcome.state, outcome.reason) == (FAILED, "a star\n")


def test_a_server_that_does_not_start_is_a_failure(tmp_path):
    reader = Reader(tmp_path)
    outcome = reader.run(Command("page.md", "echo no such model; exit 1 # server"))
    reader.close()
    assert (outcome.state, outcome.reason) == (FAILED, "no such model\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no-such.md", str(ROOT / "docs"), __file__ + "/x", os.devnull])
def test_a_page_that_does_not_exist_is_an_error_in_one_line(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main([str(PAGES[0]), name])
    assert stopped.value.code == 2
    *usage, error = capsys.readouterr().err.splitlines()
    assert error.endswith(f"no page of this repository: {name}")
    assert all(line.startswith(("usage:", " ")) for line in usage)


def test_a_page_runs_from_the_command_line(tmp_path):
    """Uses the shortest page with a command, and the small models that every page has."""
    page = ROOT / "docs" / "when-it-does-not-work.md"
    result = subprocess.run(
        [sys.executable, "-m", "pages", str(page)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ran      docs/when-it-does-not-work.md: python -m mlx_vlm_moxin doctor" in result.stdout
    assert result.stdout.endswith("1 ran, 0 failed, 0 left out\n")
