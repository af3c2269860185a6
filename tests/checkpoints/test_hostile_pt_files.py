"""PyTorch's files that call code, reach outside of storages or are malformed are refused."""

import os
import pickle
import zipfile

import pytest
from pt_checks import VALUES, read, refused
from torch_files import Call, Storage, Tensor, tensor, write_pt


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
