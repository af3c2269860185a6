"""An output directory appears complete or not at all."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from mlx_vlm_moxin.checkpoints.staging import staged


def fill(directory: Path, text: str) -> None:
    (directory / "config.json").write_text(text)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "model"


@pytest.fixture
def old(target):
    target.mkdir()
    fill(target, "old")
    return target


class BrokenError(Exception):
    """Raised while the output is being written."""


def fail(directory: Path, error: type[BaseException] = BrokenError) -> None:
    fill(directory, "new")
    (directory / "folder").mkdir()
    raise error


def names(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_nothing_is_at_the_target_before_the_end(target):
    with staged(target) as directory:
        fill(directory, "new")
        assert not target.exists()
    assert (target / "config.json").read_text() == "new"
    assert names(target) == ["model"]


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(target, error):
    with pytest.raises(error), staged(target) as directory:
        fail(directory, error)
    assert names(target) == []


def test_a_failure_leaves_the_old_one(old):
    with pytest.raises(BrokenError), staged(old, overwrite=True) as directory:
        fail(directory)
    assert (old / "config.json").read_text() == "old"
    assert names(old) == ["model"]


def test_the_old_one_stays_until_the_new_one_is_whole(old):
    with staged(old, overwrite=True) as directory:
        fill(directory, "new")
        assert (old / "config.json").read_text() == "old"
    assert (old / "config.json").read_text() == "new"
    assert names(old) == ["model"]


def test_a_failing_rename_puts_the_old_one_back(old, monkeypatch):
    rename = os.rename

    def fail_once(source, destination):
        if Path(source).name.endswith(".partial"):
            raise OSError("disk failure")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(OSError, match="disk failure"), staged(old, overwrite=True) as directory:
        fill(directory, "new")
    assert (old / "config.json").read_text() == "old"
    assert names(old) == ["model"]


def test_signals_wait_while_the_old_one_is_exchanged(old, monkeypatch):
    rename, seen = os.rename, []

    def rename_under_fire(source, destination):
        os.kill(os.getpid(), signal.SIGTERM)
        rename(source, destination)
        seen.append(names(old))

    monkeypatch.setattr(os, "rename", rename_under_fire)

    def stop(number, frame):
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KeyboardInterrupt), staged(old, overwrite=True) as directory:
            fill(directory, "new")
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert len(seen) == 2
    assert (old / "config.json").read_text() == "new"
    assert names(old) == ["model"]


def test_what_a_killed_process_left_is_removed(target):
    partial = target.with_name(".model.partial")
    (partial / "folder").mkdir(parents=True)
    fill(partial, "stale")
    with staged(target) as directory:
        assert list(directory.iterdir()) == []
        (directory / "x").write_text("")
    assert [path.name for path in target.iterdir()] == ["x"]
    assert names(target) == ["model"]


def test_a_process_killed_between_the_renames_loses_nothing(target):
    previous = target.with_name(".model.previous")
    previous.mkdir()
    fill(previous, "old")
    with pytest.raises(ValueError, match="exists"), staged(target):
        pass
    assert (target / "config.json").read_text() == "old"
    assert names(target) == ["model"]


def test_a_process_killed_while_it_removes_the_old_one_leaves_the_new_one(old):
    previous = old.with_name(".model.previous")
    previous.mkdir()
    fill(previous, "older")
    with staged(old, overwrite=True) as directory:
        fill(directory, "new")
    assert (old / "config.json").read_text() == "new"
    assert names(old) == ["model"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_and_foreign_directories_are_not_replaced(tmp_path, overwrite):
    file, home = tmp_path / "file", tmp_path / "home"
    file.write_text("mine")
    home.mkdir()
    (home / "thesis.txt").write_text("mine")
    for target, message in ((file, "is a file"), (home, "exists|does not contain a model")):
        with pytest.raises(ValueError, match=message), staged(target, overwrite):
            pass
    assert file.read_text() == (home / "thesis.txt").read_text() == "mine"
    assert names(file) == ["file", "home"]


def test_an_empty_directory_is_no_obstacle(target):
    target.mkdir()
    with staged(target) as directory:
        fill(directory, "new")
    assert (target / "config.json").read_text() == "new"


def test_parent_directories_come_and_go_with_the_output(tmp_path):
    target = tmp_path / "a" / "b" / "model"
    with pytest.raises(BrokenError), staged(target) as directory:
        fail(directory)
    assert not (tmp_path / "a").exists()
    with staged(target) as directory:
        fill(directory, "new")
    assert target.exists()


def test_a_linked_target_is_followed(tmp_path, old):
    link = tmp_path / "link"
    link.symlink_to(old)
    with staged(link, overwrite=True) as directory:
        fill(directory, "new")
    assert link.is_symlink()
    assert (old / "config.json").read_text() == "new"


def _hold(target: Path, ready, done) -> None:
    with staged(target) as directory:
        fill(directory, "first")
        ready.set()
        done.wait()


def test_two_processes_do_not_write_the_same_target(target):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(target, ready, done))
    process.start()
    assert ready.wait(60)
    try:
        with pytest.raises(ValueError, match="Another conversion to"), staged(target):
            pass
    finally:
        done.set()
        process.join(60)
    assert (target / "config.json").read_text() == "first"
    assert names(target) == ["model"]
