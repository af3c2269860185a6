"""Shards equal those of mlx-vlm, without holding a shard in memory."""

import json
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_vlm import utils
from safetensors import safe_open
from support import active_memory

from mlx_vlm_moxin.checkpoints.safetensors_writer import write_weights


@pytest.fixture
def model():
    mx.random.seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64), nn.LayerNorm(64))
    model.layers[1].set_dtype(mx.bfloat16)
    nn.quantize(model, 32, 4, class_predicate=lambda path, module: path == "layers.0")
    return model


def write(directory, model):
    values = dict(tree_flatten(model.parameters()))
    directory.mkdir()
    write_weights(directory, {k: mx.zeros_like(v) for k, v in values.items()}, values.items())
    return values


@pytest.mark.parametrize("shard_bytes", [10**9, 4000, 3000])
def test_files_names_and_index_are_those_of_mlx_vlm(tmp_path, model, monkeypatch, shard_bytes):
    # Upstream's limit is a number of GB, shifted to bytes.
    limit = type("Limit", (), {"__lshift__": lambda self, bits: shard_bytes})()
    make_shards = partial(utils.make_shards, max_file_size_gb=limit)
    monkeypatch.setattr("mlx_vlm_moxin.checkpoints.safetensors_writer.make_shards", make_shards)
    monkeypatch.setattr(utils, "make_shards", make_shards)
    values = write(tmp_path / "ours", model)
    utils.save_weights(tmp_path / "theirs", model)
    names = sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert (len(names) == 2) == (shard_bytes == 10**9)
    index = "model.safetensors.index.json"
    ours, theirs = (json.loads((tmp_path / x / index).read_text()) for x in ("ours", "theirs"))
    assert ours == theirs
    for name in names:
        if name.endswith(".safetensors"):
            ours, metadata = mx.load(str(tmp_path / "ours" / name), return_metadata=True)
            assert metadata == {"format": "mlx"}
            assert ours.keys() == mx.load(str(tmp_path / "theirs" / name)).keys()
            for key, value in ours.items():
                assert value.dtype == values[key].dtype
                assert mx.array_equal(value, values[key])


def test_the_safetensors_library_accepts_the_files_and_data_are_aligned(tmp_path, model):
    values = write(tmp_path / "ours", model)
    path = tmp_path / "ours" / "model.safetensors"
    with safe_open(path, framework="np") as file:
        assert sorted(file.keys()) == sorted(values)
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_views_are_written_in_row_order(tmp_path):
    value = mx.arange(12).reshape(3, 4).T
    write_weights(tmp_path, {"x": mx.zeros(value.shape, value.dtype)}, [("x", value)])
    assert mx.array_equal(mx.load(str(tmp_path / "model.safetensors"))["x"], value)


def test_only_one_tensor_is_in_memory_at_a_time(tmp_path):
    size = 1 << 20
    tensors = {str(i): mx.zeros((size,)) for i in range(16)}
    before = active_memory()
    write_weights(tmp_path, tensors, ((name, mx.full((size,), float(name))) for name in tensors))
    assert mx.get_peak_memory() - before < 3 * 4 * size


def test_a_value_that_is_not_the_announced_one_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="was computed where x with shape"):
        write_weights(tmp_path, {"x": mx.zeros((2,))}, [("x", mx.zeros((3,)))])


def test_two_shards_are_numbered(tmp_path, monkeypatch):
    shards = [{"a": mx.zeros((2,))}, {"b": mx.zeros((3,))}]
    tensors = {name: value for shard in shards for name, value in shard.items()}
    monkeypatch.setattr(
        "mlx_vlm_moxin.checkpoints.safetensors_writer.make_shards", lambda _: shards
    )
    write_weights(tmp_path, tensors, tensors.items())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }
    assert index["metadata"] == {"total_size": 20}
