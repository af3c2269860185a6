"""RefCOCO's pickles are read without running code in them."""

import contextlib
import os
import pickle
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_vlm_moxin.evals.data import plain_pickle
from mlx_vlm_moxin.evals.data.plain_pickle import read_plain_pickle

# The values in RefCOCO's files, and other plain values.
LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text()
LEAVES |= st.floats(allow_nan=False)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)
# As Python 2.7's cPickle writes [{"sent": "the man", "ref_id": 7, "sent_ids": [1L]}].
PYTHON_2 = (
    b"(lp1\n(dp2\nS'sent_ids'\np3\n(lp4\nL1L\nasS'sent'\np5\nS'the man'\np6\nsS'ref_id'\np7\n"
    b"I7\nsa."
)
PYTHON_2_BINARY = b"\x80\x02]q\x01}q\x02(U\x04sentq\x03U\x07the manq\x04U\x06ref_idq\x05K\x07ua."


def read(folder, data: bytes):
    path = folder / "refs.p"
    path.write_bytes(data)
    return read_plain_pickle(path)


@settings(max_examples=60)
@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_of_every_protocol_are_read_back(tmp_path_factory, value, protocol):
    folder = tmp_path_factory.mktemp("pickle")
    assert read(folder, pickle.dumps(value, protocol=protocol)) == value


def test_files_of_python_2_are_read(tmp_path):
    assert read(tmp_path, PYTHON_2) == [{"sent_ids": [1], "sent": "the man", "ref_id": 7}]
    assert read(tmp_path, PYTHON_2_BINARY) == [{"sent": "the man", "ref_id": 7}]


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_runs(tmp_path, protocol):
    target = tmp_path / "made"
    data = pickle.dumps([{"sent": Runs(str(target))}], protocol=protocol)
    with pytest.raises(
        ValueError, match=r"refs\.p is not a pickle of plain lists and dicts"
    ) as error:
        read(tmp_path, data)
    assert not target.exists()
    assert "\n" not in str(error.value)
    assert pickle.loads(data)
    assert target.exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"cos\nsystem\n.", "the opcode GLOBAL at byte 0"),
        (b"(S'id'\nios\nsystem\n.", "the opcode INST"),
        (b"\x80\x02\x82\x01.", "the opcode EXT1"),
        (b"Pid\n.", "the opcode PERSID"),
        (pickle.dumps({1, 2}), "the opcode EMPTY_SET"),
        (pickle.dumps(b"bytes"), "the opcode SHORT_BINBYTES"),
        (b"N2.", "the opcode DUP"),
        # A memo of 16 GB.
        (b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".", "a memo index of 2147483647"),
        (b"Np999999999999\n.", "a memo index of 999999999999"),
        # A text of 4 GB in a file of 12 bytes.
        (b"\x80\x02X\xff\xff\xff\xff.", "."),
        (b"L" + b"9" * 1000 + b"L\n.", "a number of"),
        (b"N.N.", "2 bytes after its end"),
        (b"(", "."),
        (b"", "."),
        (b"not a pickle", "."),
        (b"U\x01\xff.", "."),
    ],
)
def test_what_is_no_plain_pickle_is_refused_in_one_line(tmp_path, data, reason):
    with pytest.raises(ValueError, match=reason) as error:
        read(tmp_path, data)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_are_plain_values_or_refused(tmp_path_factory, data):
    # Any other exception fails the test.
    with contextlib.suppress(ValueError):
        read(tmp_path_factory.mktemp("pickle"), data)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 3)
    with pytest.raises(ValueError, match="has 4 bytes"):
        read(tmp_path, b"]1..")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"refs\.p"):
        read_plain_pickle(tmp_path / "refs.p")
