"""``make`` creates the environment once, and again for another backend or Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import set_address

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def clone(tmp_path):
    """The files that ``make`` reads, and an environment made with ``BACKEND=cuda13``."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    settings = "MADE_WITH_PYTHON := python3.12\nMADE_WITH_BACKEND := cuda13\n"
    (tmp_path / ".venv" / "settings.mk").write_text(settings, encoding="utf-8")
    (tmp_path / ".venv" / "ready").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run ``make`` without what this run of it was given."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHON", "BACKEND", "URL", "MAKEFLAGS", "MAKELEVEL")
    }
    command = ["make", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def planned(clone: Path, *arguments: str) -> str:
    """The commands that ``make`` would run."""
    result = make(clone, "-n", "demo", *arguments)
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
def test_another_backend_or_python_recreates_the_environment(clone, arguments, parts):
    commands = planned(clone, *arguments)
    for part in parts:
        assert part in commands


def test_newer_requirements_recreate_the_environment_with_the_same_backend(clone):
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


URL = "https://example.org/owner/name"


@pytest.fixture
def sources(clone):
    """What ``make address`` changes, with a placeholder for the address."""
    (clone / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "set_address.py", clone / "tests")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if set_address.address(ROOT):
        readme = readme.replace(set_address.address(ROOT), "ADDRESS")
    (clone / "README.md").write_text(readme, encoding="utf-8")
    return clone


@pytest.mark.parametrize("urls", [[URL], ["https://example.org/old", URL]])
def test_the_address_is_set_everywhere_by_one_command(sources, urls):
    for url in urls:
        result = make(sources, "address", f"URL={url}", f"PYTHON={sys.executable}")
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert set_address.address(sources) == URL
    readme = (sources / "README.md").read_text(encoding="utf-8")
    assert f"git clone {URL} mlx-vlm-moxin && cd mlx-vlm-moxin\n" in readme
    assert "ADDRESS" not in readme
    project = (sources / "pyproject.toml").read_text(encoding="utf-8")
    assert project.count("Repository") == 1
    section = project.partition("[project.urls]\n")[2].partition("\n[")[0]
    assert f'Repository = "{URL}"\n' in section


@pytest.mark.parametrize("url", ["", "nonsense", "http://example.org/x", "https://a/'b c\"'"])
def test_what_is_no_address_changes_nothing(sources, url):
    before = (sources / "pyproject.toml").read_text(encoding="utf-8")
    result = make(sources, "address", f"URL={url}", f"PYTHON={sys.executable}")
    assert result.returncode != 0
    assert result.stderr.startswith("error: ")
    assert (sources / "pyproject.toml").read_text(encoding="utf-8") == before
