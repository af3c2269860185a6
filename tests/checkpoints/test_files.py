"""Names of sources: local directories and Hub repositories, and their files."""

import pytest

from mlx_vlm_moxin.checkpoints.sources import files
from mlx_vlm_moxin.checkpoints.sources.files import (
    commit_of,
    fetch,
    fetch_first,
    is_repository,
    list_files,
    split_repository,
)


@pytest.mark.parametrize(
    ("name", "parts"),
    [("owner/name", ("owner/name", "")), ("owner/name/llama2+7b", ("owner/name", "llama2+7b"))],
)
def test_a_source_may_be_a_folder_in_a_repository(tmp_path, monkeypatch, name, parts):
    monkeypatch.chdir(tmp_path)
    assert is_repository(name)
    assert split_repository(name) == parts
    (tmp_path / name).mkdir(parents=True)
    assert not is_repository(name)


@pytest.mark.parametrize("name", ["name", "a/b/c", "/a/b", "a/b/c/d+7b"])
def test_a_name_that_is_neither_a_path_nor_a_repository_is_refused(name):
    assert not is_repository(name)
    with pytest.raises(FileNotFoundError, match="neither a local directory nor a Hub repository"):
        fetch(name, [])
    with pytest.raises(FileNotFoundError, match="neither a local directory nor a Hub repository"):
        list_files(name)
    with pytest.raises(FileNotFoundError, match="neither a local directory nor a Hub repository"):
        fetch_first(name, [])


def test_the_commit_is_the_name_of_the_snapshot(tmp_path):
    assert commit_of("owner/name", tmp_path / "abc") == "abc"
    assert commit_of("owner/name/llama2+7b", tmp_path / "abc" / "llama2+7b") == "abc"


def test_a_local_directory_is_used_directly_and_has_no_revisions(tmp_path):
    assert fetch(str(tmp_path), []) == tmp_path
    with pytest.raises(ValueError, match="one version: revision 'v1' would have no effect"):
        fetch(str(tmp_path), [], "v1")


def test_files_of_a_local_directory_are_listed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("config.json", "checkpoints/x.pt"):
        (tmp_path / name).write_text("")
    assert sorted(list_files(str(tmp_path))) == ["checkpoints/x.pt", "config.json"]
    assert fetch_first(str(tmp_path), ["no", "config.json"]) == tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match="has none of the files no, neither"):
        fetch_first(str(tmp_path), ["no", "neither"])


def test_files_of_a_folder_in_a_repository_are_listed(monkeypatch):
    class Hub:
        def list_repo_files(self, repository, revision):
            assert (repository, revision) == ("owner/name", "v1")
            return ["config.json", "a+7b/config.json", "a+7b/checkpoints/x.pt", "b/config.json"]

    monkeypatch.setattr(files, "HfApi", Hub)
    assert list_files("owner/name", "v1")[0] == "config.json"
    assert list_files("owner/name/a+7b", "v1") == ["config.json", "checkpoints/x.pt"]
