"""Directories that reach for what is not theirs, or that lack what they name."""

import json

import pytest
from source_checkpoints import NATIVE, copy_checkpoint, refused
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
def test_links_out_of_the_directory(tmp_path, secret, name):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    (directory / name).unlink()
    (directory / name).symlink_to(secret)
    message = refused(directory)
    assert f"{name} is a link to {secret}, outside of its directory" in message


def test_a_linked_checkpoint_folder(tmp_path):
    directory = copy_checkpoint(NATIVE, tmp_path / "x", skip=("checkpoints",))
    (directory / "checkpoints").symlink_to(NATIVE / "checkpoints")
    assert "outside of its directory" in refused(directory)


def test_the_hubs_cache_is_made_of_links(tmp_path):
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
def test_shard_names_that_are_paths(tmp_path, shard):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": shard}}))
    assert "which is not in its directory" in refused(directory)


def test_an_index_that_names_a_missing_shard(tmp_path):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    (directory / "model-00002-of-00003.safetensors").unlink()
    message = refused(directory, FileNotFoundError)
    assert "names model-00002-of-00003.safetensors, which is not there" in message


def test_an_index_without_a_map(tmp_path):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    (directory / "model.safetensors.index.json").write_text("{}")
    assert "has no weight_map" in refused(directory)


def test_a_shard_that_is_cut_short(tmp_path):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
    path = directory / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model-00002-of-00003.safetensors is damaged" in refused(directory)
