"""PyTorch's files: values are read correctly."""

import os
from collections import OrderedDict

import mlx.core as mx
import numpy as np
import pytest
from pt_checks import VALUES, read, refused
from source_checkpoints import NATIVE
from torch_files import Parameter, Storage, Tensor, tensor

from mlx_vlm_moxin.checkpoints.pt_file import read_pt


def test_a_file_that_pytorch_wrote_is_read():
    content = read_pt(NATIVE / "checkpoints" / "latest-checkpoint.pt")
    assert list(content["model"]) == ["projector", "llm_backbone"]
    weight = content["model"]["llm_backbone"]["llm.model.embed_tokens.weight"]
    assert (weight.shape, weight.dtype) == ((576, 128), mx.bfloat16)
    assert mx.isfinite(weight.load()).all().item()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (VALUES, mx.float32),
        (VALUES.astype(np.float16), mx.float16),
        (VALUES.astype(np.int64), mx.int64),
        (VALUES.astype(np.float64), mx.float32),
    ],
)
def test_every_dtype_is_read(tmp_path, values, dtype):
    found = read(tmp_path, tensor(values))
    assert found.dtype == found.load().dtype == dtype
    np.testing.assert_array_equal(np.array(found.load()), VALUES)


def test_bfloat16_is_read_bit_for_bit(tmp_path):
    value = mx.array([[1.5, -0.0], [3e38, 1e-40]], dtype=mx.bfloat16)
    found = read(tmp_path, tensor(np.array(value.view(mx.uint16)))).load()
    assert found.dtype == mx.bfloat16
    assert mx.array_equal(found.view(mx.uint16), value.view(mx.uint16))


def test_views_of_one_storage_are_read(tmp_path):
    storage = Storage(VALUES.ravel())
    content = {
        "transposed": Tensor(storage, 0, (6, 4), (1, 6)),
        "part": Tensor(storage, 8, (2, 3), (6, 1)),
        "scalar": Tensor(storage, 5, (), ()),
        "empty": Tensor(storage, 0, (0, 3), (3, 1)),
        "broadcast": Tensor(storage, 3, (2, 2), (0, 0)),
    }
    found = {name: np.array(value.load()) for name, value in read(tmp_path, content).items()}
    np.testing.assert_array_equal(found["transposed"], VALUES.T)
    np.testing.assert_array_equal(found["part"], VALUES[1:3, 2:5])
    np.testing.assert_array_equal(found["broadcast"], np.full((2, 2), 3))
    assert found["scalar"] == 5
    assert found["empty"].shape == (0, 3)


def test_containers_parameters_and_metadata_of_a_state_dict_are_read(tmp_path):
    state = OrderedDict(weight=Parameter(tensor(VALUES)))
    state._metadata = {"version": 2}
    content = read(tmp_path, {"model": state, "epoch": 3, "lr": [1e-3, None, (True, "a")]})
    assert content["model"]["weight"].shape == (4, 6)
    assert content["lr"] == [1e-3, None, (True, "a")]
    assert not hasattr(content["model"], "_metadata")


def test_tensors_are_read_only_when_loaded(tmp_path):
    found = read(tmp_path, tensor(VALUES))
    os.truncate(tmp_path / "file.pt", 10)
    assert found.shape == (4, 6)
    with pytest.raises(OSError, match="too early; download it again"):
        found.load()


def test_exactly_the_bytes_of_a_view_are_read(tmp_path):
    found = read(tmp_path, Tensor(Storage(np.arange(6, dtype=np.float32)), 0, (2, 2), (3, 1)))
    path = tmp_path / "file.pt"
    # The view ends before the storage's last value, with which the file is cut off.
    os.truncate(path, path.read_bytes().rindex(np.float32(5).tobytes()))
    np.testing.assert_array_equal(np.array(found.load()), [[0, 1], [3, 4]])
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(OSError, match="1 bytes too early"):
        found.load()


def test_an_unknown_dtype_is_named(tmp_path):
    message = refused(tmp_path, tensor(VALUES.astype(np.complex64)))
    assert "unknown dtype (torch.ComplexFloatStorage)" in message
