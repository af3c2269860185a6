"""Zip archives that torch.save does not write are refused."""

import os
import zipfile

import pytest
from pt_checks import VALUES, refused
from torch_files import tensor, write_pt

from mlx_vlm_moxin.checkpoints.pt_file import read_pt


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
