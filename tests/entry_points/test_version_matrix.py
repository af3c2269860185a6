"""``make matrix``: which versions it tests, its table and its exit status."""

import sys
from pathlib import Path

import pytest
import version_matrix

PASSED = {"passed": 5, "failed": 0, "skipped": 1}
FAILED = {"passed": 5, "failed": 1, "skipped": 0}
NOT_RUN = {"passed": 0, "failed": 0, "skipped": 0}


def test_the_oldest_version_is_the_one_that_pyproject_allows():
    text = (version_matrix.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"mlx-vlm>={version_matrix.oldest()},' in text


def test_the_core_tests_exist():
    for name in version_matrix.CORE:
        assert (version_matrix.ROOT / "tests" / name).exists(), name


@pytest.mark.parametrize(
    ("newest", "status"), [(PASSED, 0), (FAILED, 1), (NOT_RUN, 1)], ids=("good", "bad", "not run")
)
def test_a_version_that_fails_or_does_not_run_is_an_error(monkeypatch, capsys, newest, status):
    made, counts = [], iter((PASSED, newest))

    def make_environment(folder: Path, version: str) -> Path:
        made.append(version)
        return Path(sys.executable)

    monkeypatch.setattr(sys, "argv", ["version_matrix.py"])
    monkeypatch.setattr(version_matrix, "make_environment", make_environment)
    monkeypatch.setattr(version_matrix, "run_tests", lambda python, report: next(counts))
    assert version_matrix.main() == status
    assert made == [version_matrix.oldest(), "newest"]
    header, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header[-3:] == ["passed", "failed", "skipped"]
    assert [line[-3:] for line in lines] == [
        [str(count) for count in row.values()] for row in (PASSED, newest)
    ]
