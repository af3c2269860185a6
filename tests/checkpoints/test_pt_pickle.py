"""Pickles that would hang, crash or fill memory with Python's unpickler are refused at once."""

import os
import struct
import zipfile

import pytest
from torch_files import write_pt

from mlx_vlm_moxin.checkpoints import pt_pickle
from mlx_vlm_moxin.checkpoints.pt_file import read_pt

PROTOCOL = b"\x80\x02"
STOP = b"."
ORDERED_DICT = b"ccollections\nOrderedDict\n"
REBUILD_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
FLOAT_STORAGE = b"ctorch\nFloatStorage\n"
# Each level holds the one before twice: hashing, comparing or printing it takes 2 ** 40 steps.
BOMB = b")" + b"q\x01h\x01\x86" * 40


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(key: bytes = text("0"), count: bytes = b"K\x01", kind: bytes = FLOAT_STORAGE) -> bytes:
    return b"(" + text("storage") + kind + key + text("cpu") + count + b"tQ"


def tensor(shape: bytes = b"K\x01\x85", offset: bytes = b"K\x00") -> bytes:
    return REBUILD_TENSOR + b"(" + storage() + offset + shape + b"K\x01\x85\x89)tR"


def refused(tmp_path, data: bytes) -> str:
    path = write_pt(tmp_path / "file.pt", None, data=PROTOCOL + data + STOP)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(4))
    with pytest.raises(ValueError, match=r"file\.pt contains ") as error:
        read_pt(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


def test_the_builders_of_this_file_make_a_tensor(tmp_path):
    path = write_pt(tmp_path / "file.pt", None, data=PROTOCOL + tensor() + STOP)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", struct.pack("<f", 2.5))
    assert read_pt(path).load().tolist() == [2.5]


@pytest.mark.parametrize(
    "data",
    [
        b"}" + BOMB + b"Ns",
        b"}(" + BOMB + b"Nu",
        b"}" + b")" + b"\x85" * 100_000 + b"Ns",
        b"}" + ORDERED_DICT + b")RNs",
        b"}G" + bytes(8) + b"Ns",
        b"}\x8a\x09" + b"\xff" * 8 + b"\x00Ns",
        b"}\x88Ns",
        b"}(K\x01u",
    ],
    ids=["bomb", "bomb in SETITEMS", "deep", "dict", "float", "long", "bool", "odd"],
)
def test_keys_that_are_no_strings_are_refused(tmp_path, data):
    refused(tmp_path, data)


@pytest.mark.parametrize(
    "data",
    [
        b")" + b"\x85" * 50,
        b"]" * 50 + b"a" * 49,
        b"}" + b"".join([text("a") + b"}"] * 50) + b"s" * 50,
        # A list that grows after it was put into another one.
        b"]q\x01]q\x02ah\x02]a",
        # A list that contains itself.
        b"]q\x01h\x01a",
    ],
    ids=["tuples", "lists", "dicts", "late", "cycle"],
)
def test_nested_containers_are_refused_at_once(tmp_path, data):
    refused(tmp_path, data)


@pytest.mark.parametrize(
    "data",
    [
        BOMB + b"Q",
        b"(" + BOMB + b"NNNNtQ",
        storage(key=BOMB),
        storage(key=text("../../../etc/passwd")),
        storage(kind=BOMB),
        storage(count=BOMB),
        storage(count=b"J\xff\xff\xff\xff"),
        text("storage") + b"Q",
        b"(" + text("module") + FLOAT_STORAGE + text("0") + text("cpu") + b"K\x01tQ",
        b"(" + text("storage") + FLOAT_STORAGE + text("0") + text("cpu") + b"tQ",
    ],
)
def test_persistent_ids_that_are_no_storage_are_refused(tmp_path, data):
    refused(tmp_path, data)


@pytest.mark.parametrize(
    "data",
    [
        tensor(shape=BOMB),
        tensor(offset=BOMB),
        tensor(shape=b"(" + b"K\x01" * 9 + b"t"),
        tensor(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"),
        REBUILD_TENSOR + b")R",
        REBUILD_TENSOR + BOMB + b"R",
        FLOAT_STORAGE + b")R",
        b"ctorch._utils\n_rebuild_parameter\n(NNNtR",
    ],
)
def test_tensors_that_make_no_sense_are_refused(tmp_path, data):
    refused(tmp_path, data)


def test_an_ordered_dict_with_arguments_is_refused(tmp_path):
    assert "an OrderedDict with arguments" in refused(tmp_path, ORDERED_DICT + b"]\x85R")


@pytest.mark.parametrize(
    "data",
    [b"N0", b"N2", b"I1\n", b"L1L\n", b"S'a'\n", b"C\x01a", b"c__main__\nx\n", b"\x8b\x01\0\0\0\1"],
)
def test_opcodes_that_torch_save_does_not_write_are_refused(tmp_path, data):
    assert "which no state dict needs" in refused(tmp_path, data)


@pytest.mark.parametrize(
    "data", [b"a", b"u", b"t", b"R", b"q\x01", b"h\x01", b"Q", b"b", b"(s", b"\x85", b"\x87", b""]
)
def test_opcodes_without_their_operands_are_refused(tmp_path, data):
    refused(tmp_path, data)


def test_a_large_memo_index_needs_no_memory(tmp_path):
    data = PROTOCOL + b"Nr" + struct.pack("<I", 100_000_000) + STOP
    assert read_pt(write_pt(tmp_path / "file.pt", None, data=data)) is None


def test_too_many_objects_are_refused(tmp_path, monkeypatch):
    assert "more than 100000 objects" in refused(tmp_path, b"}" * 100_001)
    monkeypatch.setattr(pt_pickle, "_MAX_OPCODES", 1000)
    assert "more than 1000 opcodes" in refused(tmp_path, b"N" * 1001)


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    path = write_pt(tmp_path / "file.pt", None)
    with zipfile.ZipFile(path, "a") as archive:
        for key in range(500):
            archive.writestr(f"archive/data/{key}", b"")
    assert read_pt(path) is None
    monkeypatch.setattr("mlx_vlm_moxin.checkpoints.pt_archive._MAX_DIRECTORY_BYTES", 20_000)
    with pytest.raises(ValueError, match="is cut short or damaged"):
        read_pt(path)


def test_a_compressed_pickle_is_not_decompressed(tmp_path):
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"}" * 10_000_000, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"compressed or encrypted member archive/data\.pkl"):
        read_pt(path)


def test_a_file_that_never_ends_is_refused(tmp_path):
    path = tmp_path / "file.pt"
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"file\.pt is not a regular file"):
        read_pt(path)
