"""Directories with links to the outside, or without the files that they name."""

import json
import os

import pytest
from source_checkpoints import NATIVE, NATIVE_FILES, copy_checkpoint, refused
from support import HF_CHECKPOINT

from mlx_vlm_moxin.checkpoints.sources import open_source


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.json"
    path.write_text('{"token": "secret"}')
    return path


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "generation_config.json", "model-00001-of-00003.safetensors"]
)
def test_links_out_of_the_directory_are_refused(tmp_path, secret, name):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    (directory / name).unlink()
    (directory / name).symlink_to(secret)
    message = refused(directory)
    assert f"{name} is a link to {secret}, outside of its directory" in message


def test_a_linked_checkpoint_folder_is_refused(tmp_path):
    directory = copy_checkpoint(NATIVE, tmp_path / "x", skip=("checkpoints",))
    (directory / "checkpoints").symlink_to(NATIVE / "checkpoints")
    assert "outside of its directory" in refused(directory)


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    repository = tmp_path / "models--owner--name"
    blobs = copy_checkpoint(HF_CHECKPOINT, repository / "blobs")
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert open_source(str(snapshot)).tensors


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 3, "a\\b"]
)
def test_shard_names_that_are_paths_are_refused(tmp_path, shard):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": shard}}))
    assert "which is not in its directory" in refused(directory)


def test_an_index_that_names_a_missing_shard_is_refused(tmp_path):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    (directory / "model-00002-of-00003.safetensors").unlink()
    message = refused(directory, FileNotFoundError)
    assert "names model-00002-of-00003.safetensors, which is not there" in message


def test_an_index_without_a_map_is_refused(tmp_path):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    (directory / "model.safetensors.index.json").write_text("{}")
    assert "has no weight_map" in refused(directory)


def test_a_shard_that_is_cut_short_is_refused(tmp_path):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    path = directory / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model-00002-of-00003.safetensors is damaged" in refused(directory)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "model-00002-of-00003.safetensors"]
)
def test_files_that_never_end_are_refused_at_once(tmp_path, name):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    (directory / name).unlink()
    os.mkfifo(directory / name)
    assert f"{name} is not a regular file" in refused(directory)


@pytest.mark.parametrize("name", ["dino", "siglip"])
def test_a_tower_file_that_never_ends_is_refused_at_once(tmp_path, name):
    fifo = tmp_path / f"{name}.safetensors"
    os.mkfifo(fifo)
    files = {"dino": NATIVE_FILES.dino, "siglip": NATIVE_FILES.siglip, name: str(fifo)}
    with pytest.raises(ValueError, match="is not a regular file"):
        open_source(str(NATIVE), llm=NATIVE_FILES.llm, towers=files)


@pytest.mark.parametrize("content", ['{"a": NaN}', '{"a": -Infinity}', "[" * 100_000, "{", "[]"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_settings_that_are_no_json_object_are_refused(tmp_path, name, content):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    (directory / name).write_text(content)
    message = refused(directory)
    assert name in message
    assert len(message) < 500


def test_settings_of_gigabytes_are_not_read(tmp_path):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    os.truncate(directory / "config.json", 10**10)
    assert "config.json has 10.00 GB; settings have at most 4.19 MB" in refused(directory)


def header_file(path, header: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def test_a_header_of_many_tensors_is_refused(tmp_path):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x", skip=("model*",))
    path = directory / "model.safetensors"
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header_file(path, json.dumps({f"t{i}": tensor for i in range(20_001)}).encode())
    assert "has 20001 tensors" in refused(directory)


def test_a_large_header_is_not_read(tmp_path):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x", skip=("model*",))
    header_file(directory / "model.safetensors", b" " * 5_000_000)
    assert "has a header of 5000000 bytes" in refused(directory)


def test_long_names_are_not_repeated_in_full(tmp_path):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x", skip=("model*",))
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({"x" * 100_000: tensor}).encode()
    header_file(directory / "model.safetensors", header)
    assert len(refused(directory)) < 1000
