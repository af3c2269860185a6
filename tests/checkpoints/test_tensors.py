"""Tensors are read from their files only when they are loaded."""

import json

import mlx.core as mx
import pytest
from support import HF_CHECKPOINT

from mlx_vlm_moxin.checkpoints.tensors import (
    LazyTensor,
    concatenate,
    read_checkpoint,
    read_safetensors,
)

DTYPES = [mx.float32, mx.float16, mx.bfloat16, mx.int64, mx.int32, mx.int8, mx.uint32, mx.uint8]
DTYPES += [mx.bool_, mx.int16, mx.uint16, mx.uint64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_those_that_mlx_reads(tmp_path, dtype):
    values = {"a": mx.arange(6).reshape(2, 3).astype(dtype), "b": mx.array(1).astype(dtype)}
    mx.save_safetensors(str(tmp_path / "a.safetensors"), values)
    found = read_safetensors(tmp_path / "a.safetensors")
    assert found.keys() == values.keys()
    for name, value in values.items():
        loaded = found[name].load()
        assert (found[name].shape, found[name].dtype) == (value.shape, dtype)
        assert loaded.dtype == dtype
        assert mx.array_equal(loaded, value)
        assert found[name].nbytes == value.nbytes


def test_all_shards_of_a_checkpoint_are_read():
    weights = {}
    for file in HF_CHECKPOINT.glob("*.safetensors"):
        weights.update(mx.load(str(file)))
    found = read_checkpoint(HF_CHECKPOINT)
    assert found.keys() == weights.keys()
    assert all(mx.array_equal(found[name].load(), weights[name]) for name in weights)


def test_transposing_and_joining_happen_at_loading():
    def fail() -> mx.array:
        raise AssertionError("loaded too early")

    lazy = LazyTensor((2, 3), mx.float32, fail)
    assert lazy.transpose(1, 0).shape == (3, 2)
    assert concatenate([lazy, lazy]).shape == (4, 3)
    value = mx.arange(6).reshape(2, 3)
    tensor = LazyTensor.of(value)
    assert mx.array_equal(tensor.transpose(1, 0).load(), value.T)
    assert mx.array_equal(concatenate([tensor, tensor]).load(), mx.concatenate([value, value]))


def test_tensors_of_different_kinds_are_not_joined():
    tensors = [LazyTensor.of(mx.zeros((2, 3))), LazyTensor.of(mx.zeros((2, 4)))]
    with pytest.raises(ValueError, match="Cannot join"):
        concatenate(tensors)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in ("a", "b"):
        mx.save_safetensors(str(tmp_path / f"{name}.safetensors"), {"x": mx.zeros((1,))})
    with pytest.raises(ValueError, match="has tensor x in two files"):
        read_checkpoint(tmp_path)


def _write(path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    ("entry", "data", "message"),
    [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, bytes(8), "is damaged"),
        ({"dtype": "F32", "shape": [9], "data_offsets": [0, 16]}, bytes(16), "is damaged"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}, bytes(16), "is damaged"),
        ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, bytes(4), "dtype F8_E4M3"),
        ({"dtype": "WHAT", "shape": [4], "data_offsets": [0, 4]}, bytes(4), "is damaged"),
    ],
)
def test_headers_that_do_not_fit_their_file_are_refused(tmp_path, entry, data, message):
    path = tmp_path / "a.safetensors"
    _write(path, {"x": entry}, data)
    with pytest.raises(ValueError, match=message):
        read_safetensors(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 9, b"<html>"], ids=["empty", "huge", "HTML"])
def test_files_that_are_no_safetensors_are_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged"):
        read_safetensors(path)
