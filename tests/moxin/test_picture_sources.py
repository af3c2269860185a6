"""Limits on sources: pixels, bytes, kinds of files, local files."""

import io
import os
import pathlib
import sys

import numpy as np
import pytest
from mlx_vlm.models.moxin.picture import read_picture
from mlx_vlm.models.moxin.picture_sources import PictureError, PictureLimits
from picture_forms import DATA, FORMS, GREY, PHOTO, PIXELS, refusal
from PIL import Image


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
def test_pipes_devices_and_directories_are_refused_without_waiting(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, pathlib.Path("/dev/zero"), tmp_path):
        message = refusal(path)
        assert "directory" in message or "a device or a pipe" in message


def test_limits_on_pixels_and_bytes_are_exact():
    height, width = GREY.shape
    sized = PictureLimits(max_pixels=height * width, max_bytes=len(DATA))
    for source in (PHOTO, DATA, Image.open(PHOTO), PIXELS, FORMS["data URI"]):
        assert read_picture(source, sized).size == (width, height)
        assert f"{width}x{height} pixels, more than the limit of" in refusal(
            source, max_pixels=height * width - 1
        )
    for source in (PHOTO, DATA, io.BytesIO(DATA), FORMS["data URI"]):
        assert "larger than the limit" in refusal(source, max_bytes=len(DATA) - 1)
    assert "longer than the limit" in refusal(FORMS["data URI"], max_bytes=10)


def test_limits_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("MLX_VLM_MOXIN_MAX_PIXELS", "100")
    with pytest.raises(PictureError, match="more than the limit of 100"):
        read_picture(PHOTO)
    monkeypatch.setenv("MLX_VLM_MOXIN_MAX_PIXELS", "many")
    with pytest.raises(PictureError, match="MLX_VLM_MOXIN_MAX_PIXELS='many' must be a positive"):
        read_picture(PHOTO)


def test_pillows_own_limit_holds_by_default(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "decompression bomb" in refusal(DATA)
    assert "more than the limit of 200" in refusal(PIXELS)


def test_local_files_are_refused_whether_they_exist_or_not(tmp_path):
    limits = {"local_files": False}
    sources = (PHOTO, str(PHOTO), PHOTO.as_uri(), "/no/such.png", tmp_path, {"path": str(PHOTO)})
    assert len({refusal(source, **limits) for source in sources}) == 1
    image = read_picture(DATA, PictureLimits(**limits))
    np.testing.assert_array_equal(np.asarray(image), PIXELS)
