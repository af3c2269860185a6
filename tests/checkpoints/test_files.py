"""Files of a source: limits on its JSON, links out of it, and listing a directory."""

import json
import os

import pytest

from mlx_vlm_moxin.checkpoints.sources import files
from mlx_vlm_moxin.checkpoints.sources.files import (
    MAX_JSON_BYTES,
    check_directory,
    check_index,
    check_inside,
    commit_of,
    fetch,
    fetch_first,
    is_repository,
    list_files,
    read_json,
    split_repository,
)


def test_settings_may_have_four_mebibytes_and_no_byte_more(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}" + " " * (MAX_JSON_BYTES - 2))
    assert MAX_JSON_BYTES == 4 * 1024**2
    assert read_json(path) == {}
    path.write_text("{}" + " " * (MAX_JSON_BYTES - 1))
    with pytest.raises(ValueError, match=r"config\.json has .* settings have at most"):
        read_json(path)


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": Infinity}', "{", "\udcff"])
def test_values_that_json_does_not_have_are_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        read_json(path)


def test_json_that_is_no_object_is_named_by_its_type(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="contains list instead of a JSON object"):
        read_json(path)


class TestLinks:
    @pytest.fixture
    def outside(self, tmp_path):
        path = tmp_path / "outside.safetensors"
        path.write_bytes(b"x")
        return path

    @pytest.mark.parametrize("name", ["config.json", "x.safetensors", "checkpoints/x.pt"])
    def test_a_link_out_of_the_directory_is_refused(self, tmp_path, outside, name):
        link = tmp_path / "model" / name
        link.parent.mkdir(parents=True)
        link.symlink_to(outside)
        for check in (
            lambda: check_inside(link, tmp_path / "model"),
            lambda: check_directory(tmp_path / "model"),
            lambda: fetch_first(str(tmp_path / "model"), ["none", name]),
        ):
            with pytest.raises(ValueError, match=r"is a link to .* outside of its directory"):
                check()

    def test_a_link_within_the_directory_is_allowed(self, tmp_path):
        (tmp_path / "a.json").write_text("{}")
        (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
        check_directory(tmp_path)

    @pytest.mark.parametrize("name", ["config.json", "x.pt"])
    def test_a_pipe_among_the_files_is_refused_without_waiting(self, tmp_path, name):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=name):
            check_directory(tmp_path)

    @pytest.mark.parametrize("folder", ["", "model+7b"])
    def test_the_hubs_cache_links_to_its_blobs(self, tmp_path, outside, folder):
        blob = tmp_path / "blobs" / "0123"
        blob.parent.mkdir()
        blob.write_bytes(b"{}")
        snapshot = tmp_path / "snapshots" / "commit" / folder
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").symlink_to(blob)
        check_inside(snapshot / "config.json", snapshot)
        (snapshot / "x.json").symlink_to(outside)
        with pytest.raises(ValueError, match="outside"):
            check_inside(snapshot / "x.json", snapshot)


@pytest.mark.parametrize("name", ["../x.safetensors", "a/b.safetensors", "x.bin", 5])
def test_an_index_names_files_beside_it(tmp_path, name):
    check_index(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    check_index(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="which is not in its directory"):
        check_directory(tmp_path)
    index.write_text(json.dumps({"weight_map": ["a"]}))
    with pytest.raises(ValueError, match="has no weight_map"):
        check_index(tmp_path)


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


def test_a_local_directory_is_fetched_as_it_is_and_has_no_revisions(tmp_path):
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
