"""``make``: the environment is made once, and anew for another backend or Python."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def clone(tmp_path):
    """What ``make`` looks at, and an environment that it has made with ``BACKEND=cuda13``."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    settings = "MADE_WITH_PYTHON := python3.12\nMADE_WITH_BACKEND := cuda13\n"
    (tmp_path / ".venv" / "settings.mk").write_text(settings, encoding="utf-8")
    (tmp_path / ".venv" / "ready").touch()
    return tmp_path


def planned(clone: Path, *arguments: str) -> str:
    """The commands that ``make`` would run."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHON", "BACKEND", "MAKEFLAGS", "MAKELEVEL")
    }
    command = ["make", "-n", "demo", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=clone, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("arguments", [[], ["BACKEND=cuda13"], ["PYTHON=python3.12"]])
def test_an_environment_that_is_there_is_used(clone, arguments):
    commands = planned(clone, *arguments)
    assert "-m venv" not in commands
    assert "mlx_vlm.generate" in commands or "mlx_vlm generate" in commands


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["BACKEND=cpu"], ["python3.12 -m venv --clear", '-e ".[test,cpu]"']),
        (["PYTHON=python3.11"], ["python3.11 -m venv --clear", '-e ".[test,cuda13]"']),
        (["BACKEND="], ["python3.12 -m venv --clear", '-e ".[test]"']),
    ],
)
def test_another_backend_or_python_makes_it_anew(clone, arguments, parts):
    commands = planned(clone, *arguments)
    for part in parts:
        assert part in commands


def test_newer_requirements_make_it_anew_with_the_same_backend(clone):
    newer = (clone / ".venv" / "ready").stat().st_mtime + 10
    os.utime(clone / "requirements.txt", (newer, newer))
    assert '-e ".[test,cuda13]"' in planned(clone)


def test_what_it_is_made_with_is_written_down(clone):
    (clone / ".venv" / "settings.mk").unlink()
    commands = planned(clone, "BACKEND=cuda12", "PYTHON=python3.10")
    assert "'python3.10' 'cuda12'" in commands
    assert "> .venv/settings.mk" in commands


def test_on_this_system_the_default_backend_is_installed(clone):
    shutil.rmtree(clone / ".venv")
    assert "python3 -m venv --clear .venv" in planned(clone)
