"""A source's directory: limits on its JSON, and links out of it."""

import json
import os

import pytest

from mlx_vlm_moxin.checkpoints.sources.directory import (
    MAX_JSON_BYTES,
    check_directory,
    check_index,
    check_inside,
    read_json,
)
from mlx_vlm_moxin.checkpoints.sources.files import (
    fetch_first,
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
def test_an_index_must_name_files_in_its_directory(tmp_path, name):
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
