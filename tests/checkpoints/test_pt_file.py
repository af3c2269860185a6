"""PyTorch's files: values are read correctly, and no code in them runs."""

import os
import pickle
import zipfile
from collections import OrderedDict

import mlx.core as mx
import numpy as np
import pytest
from source_checkpoints import NATIVE
from torch_files import Call, Parameter, Storage, Tensor, tensor, write_pt

from mlx_vlm_moxin.checkpoints.pt_file import read_pt

VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)


def read(path, *arguments, **kwargs):
    return read_pt(write_pt(path / "file.pt", *arguments, **kwargs))


def refused(path, *arguments, **kwargs) -> str:
    """The one-line error for such a file."""
    with pytest.raises(ValueError, match=r"file\.pt") as error:
        read(path, *arguments, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


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


class TestHostileFiles:
    @pytest.fixture(autouse=True)
    def nothing_ran(self, tmp_path):
        self.marker = tmp_path / "it-ran"
        yield
        assert not self.marker.exists()

    def test_a_call_of_os_system_is_refused(self, tmp_path):
        message = refused(tmp_path, Call(os.system, f"touch {self.marker}"))
        assert "the global posix.system" in message
        assert "was not read further" in message

    def test_a_pickle_in_a_pickle_is_refused(self, tmp_path):
        inner = pickle.dumps(Call(os.system, f"touch {self.marker}"))
        assert "pickle.loads" in refused(tmp_path, [Call(pickle.loads, inner)])

    @pytest.mark.parametrize("function", [eval, exec, getattr, __import__, open, bytearray])
    def test_calls_of_builtins_are_refused(self, tmp_path, function):
        assert "the global" in refused(tmp_path, {"model": [Call(function, "1")]})

    def test_a_call_after_a_good_tensor_is_refused(self, tmp_path):
        content = {"good": tensor(VALUES), "bad": Call(os.system, f"touch {self.marker}")}
        assert "posix.system" in refused(tmp_path, content)

    @pytest.mark.parametrize(
        "data",
        [
            b"cos\nsystem\n(S'touch %s'\ntR.",
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x01x\x85R.",
            b"(S'x'\nios\nsystem\n.",
            b"\x80\x02ccollections\nOrderedDict.__init__.__globals__\n.",
        ],
        ids=["GLOBAL", "STACK_GLOBAL", "INST", "dotted name"],
    )
    def test_every_opcode_that_names_a_global_is_refused(self, tmp_path, data):
        assert "which no state dict needs" in refused(tmp_path, None, data=data)

    @pytest.mark.parametrize("name", ["_rebuild_tensor_v2", "_rebuild_parameter"])
    @pytest.mark.parametrize("attribute", ["_path", "__call__", "__class__"])
    def test_the_stand_ins_cannot_be_changed(self, tmp_path, name, attribute):
        """With another ``_path``, for example, tensors could come from any file of the machine."""
        stand_in = f"ctorch._utils\n{name}\n"
        state = f"}}S'{attribute}'\nS'/etc/passwd'\ns"
        for build in (f"{state}b.", f"(N{state}tb."):
            refused(tmp_path, None, data=(stand_in + build).encode())

    @pytest.mark.parametrize("state", [{"shape": (9, 9)}, (None, {"load": 1})])
    def test_tensors_cannot_be_changed(self, tmp_path, state):
        content = Tensor(Storage(VALUES.ravel()), 0, (4, 6), (6, 1), state)
        assert "whose attributes are changed" in refused(tmp_path, content)

    def test_methods_of_a_state_dict_cannot_be_replaced(self, tmp_path):
        data = b"ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\x01sb."
        assert list(read(tmp_path, None, data=data).items()) == []

    def test_extension_codes_are_refused(self, tmp_path):
        refused(tmp_path, None, data=b"\x80\x02\x82\x01.")

    def test_deep_nesting_is_refused(self, tmp_path):
        refused(tmp_path, None, data=b"(" * 10 + b"]" * 50_000 + b"a" * 60_000 + b".")

    def test_garbage_is_refused(self, tmp_path):
        refused(tmp_path, None, data=b"\x00\xff garbage")

    def test_an_empty_pickle_is_refused(self, tmp_path):
        refused(tmp_path, None, data=b"")

    def test_an_oversized_pickle_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("mlx_vlm_moxin.checkpoints.pt_file._MAX_PICKLE_BYTES", 10)
        assert "a data.pkl of" in refused(tmp_path, {"model": tensor(VALUES)})

    @pytest.mark.parametrize(
        ("shape", "strides", "offset"),
        [
            ((4, 7), (7, 1), 0),
            ((4, 6), (6, 1), 1),
            ((4, 6), (6, 1), -1),
            ((2, 2), (-6, 1), 6),
            ((2**40, 2), (1, 0), 0),
            ((4, 6), (6,), 0),
            ((4.0, 6), (6, 1), 0),
        ],
    )
    def test_tensors_that_reach_outside_of_their_storage_are_refused(
        self, tmp_path, shape, strides, offset
    ):
        content = Tensor(Storage(VALUES.ravel()), offset, shape, strides)
        assert "a tensor" in refused(tmp_path, content)

    def test_a_storage_larger_than_its_bytes_is_refused(self, tmp_path):
        path = write_pt(tmp_path / "file.pt", tensor(VALUES))
        with zipfile.ZipFile(path) as archive:
            data = archive.read("archive/data.pkl")
        small = tensor(VALUES[:1])
        assert "of 24 bytes, not 96" in refused(tmp_path, small, data=data)

    def test_a_missing_storage_is_refused(self, tmp_path):
        path = write_pt(tmp_path / "file.pt", tensor(VALUES))
        with zipfile.ZipFile(path) as archive:
            data = archive.read("archive/data.pkl")
        assert "archive/data/0" in refused(tmp_path, None, data=data)


def test_an_unknown_dtype_is_named(tmp_path):
    message = refused(tmp_path, tensor(VALUES.astype(np.complex64)))
    assert "unknown dtype (torch.ComplexFloatStorage)" in message


def test_compressed_members_are_refused(tmp_path):
    message = refused(tmp_path, tensor(VALUES), compression=zipfile.ZIP_DEFLATED)
    assert "a compressed or encrypted member archive/byteorder" in message
    assert "save it again with torch.save" in message


def test_a_compressed_storage_is_refused(tmp_path):
    path, small = tmp_path / "file.pt", tmp_path / "small.pt"
    with zipfile.ZipFile(write_pt(path, tensor(VALUES))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(small, "w") as archive:
        for name, content in members.items():
            kind = zipfile.ZIP_DEFLATED if name == "archive/data/0" else zipfile.ZIP_STORED
            archive.writestr(name, content, kind)
    with pytest.raises(ValueError, match="a compressed or encrypted member archive/data/0"):
        read_pt(small)


def test_big_endian_values_are_refused(tmp_path):
    assert "big-endian" in refused(tmp_path, tensor(VALUES), byteorder="big")


@pytest.mark.parametrize("kept", [0.2, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_refused(tmp_path, kept):
    path = write_pt(tmp_path / "file.pt", tensor(VALUES))
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(ValueError, match="cut short or damaged; download it again"):
        read_pt(path)


def test_a_zip_that_pytorch_did_not_write_is_refused(tmp_path):
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"0 members called data\.pkl instead of one"):
        read_pt(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
        b"sys_info\x00" + bytes(600),
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
    ids=["empty", "before 1.6", "tar", "LFS pointer"],
)
def test_other_formats_are_refused(tmp_path, content):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not in PyTorch's zip format"):
        read_pt(path)


def test_an_encrypted_member_is_refused(tmp_path):
    path = write_pt(tmp_path / "file.pt", tensor(VALUES))
    content = bytearray(path.read_bytes())
    # The flags of a member in the archive's list of members; bit 0 means encrypted.
    place = content.find(b"PK\x01\x02")
    while place >= 0:
        content[place + 8] |= 1
        place = content.find(b"PK\x01\x02", place + 1)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="encrypted member"):
        read_pt(path)
