"""Bad input: one clear line, a non-zero exit, no traceback."""

import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from support import HF_CHECKPOINT, image_path, run_module

SHARD = "model-00002-of-00003.safetensors"


def ask(model, *arguments: str, **kwargs) -> subprocess.CompletedProcess:
    options = ["--model", str(model), "--max-tokens", "2", "--prompt", "What is shown?"]
    return run_module("mlx_vlm.generate", *options, *arguments, **kwargs)


def assert_one_line(result: subprocess.CompletedProcess, *parts: str) -> None:
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(HF_CHECKPOINT, tmp_path / "checkpoint")


def edit_config(checkpoint: Path, **changes) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    text_config = {**config["text_config"], **changes.pop("text_config", {})}
    config = {**config, "text_config": text_config, **changes}
    path.write_text(json.dumps(config), encoding="utf-8")


def test_a_missing_shard_is_named(checkpoint):
    (checkpoint / SHARD).unlink()
    result = ask(checkpoint, "--image", image_path("photo"))
    assert_one_line(result, f"names {SHARD}, which is not there", "download")


def test_a_shard_cut_short_is_refused_by_mlx_before_this_package_reads_it(checkpoint):
    data = (checkpoint / SHARD).read_bytes()
    (checkpoint / SHARD).write_bytes(data[: len(data) // 2])
    result = ask(checkpoint, "--image", image_path("photo"))
    assert result.returncode == 1
    assert "incomplete download or corrupt file" in result.stderr


def test_a_tensor_of_a_wrong_shape_is_named(checkpoint):
    weights, _ = mx.load(str(checkpoint / SHARD), return_metadata=True)
    weights["projector.fc3.bias"] = mx.zeros((5,))
    mx.save_safetensors(str(checkpoint / SHARD), weights)
    result = ask(checkpoint)
    assert_one_line(result, "multi_modal_projector.fc3.bias has shape (5,), expected (128,)")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"text_config": {"num_attention_heads": 0}}, "text_config.num_attention_heads"),
        ({"text_config": {"vocab_size": "x"}}, "text_config.vocab_size"),
        ({"pad_token_id": None}, "pad_token_id missing"),
        ({"timm_model_ids": ["vit_giant_patch14_clip_224"]}, "not supported"),
        ({"text_config": {"model_type": "phi"}}, "not supported"),
        ({"text_config": {"num_hidden_layers": 5}}, "tensors missing"),
        ({"text_config": {"num_hidden_layers": 3}}, "tensors unknown"),
    ],
)
def test_a_config_that_is_wrong_is_named(checkpoint, changes, part):
    edit_config(checkpoint, **changes)
    assert_one_line(ask(checkpoint), part)


def test_a_missing_tokenizer_is_named(checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    assert_one_line(ask(checkpoint, "--image", image_path("photo")), "No tokenizer.json in")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims ``width`` x ``height`` pixels and holds none of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (None, "picture.png"),
        (b"", "picture.png"),
        (b"not a picture", "picture.png"),
        (Path(image_path("photo")).read_bytes()[:5000], "truncated"),
        (png_header(0, 4), "picture.png"),
        (png_header(60000, 60000), "decompression bomb"),
    ],
    ids=["missing", "zero bytes", "no picture", "truncated", "zero size", "bomb"],
)
def test_a_picture_that_cannot_be_read_is_named(tmp_path, data, part):
    path = tmp_path / "picture.png"
    if data is not None:
        path.write_bytes(data)
    assert_one_line(ask(HF_CHECKPOINT, "--image", str(path)), part)


def test_a_url_that_fails_is_named():
    assert_one_line(ask(HF_CHECKPOINT, "--image", "http://127.0.0.1:9/x.png"), "127.0.0.1", "9")


def test_two_pictures_are_one_too_many():
    result = ask(HF_CHECKPOINT, "--image", image_path("photo"), image_path("tall"))
    assert_one_line(result, "only use 1 image")


def test_a_picture_given_as_an_array_of_a_wrong_kind_is_refused_in_the_api(processor):
    with pytest.raises(ValueError, match="uint8"):
        processor("In: a\nOut:", [np.zeros((4, 4, 3), np.int64)])


def test_a_variable_shows_the_traceback():
    result = ask(HF_CHECKPOINT, "--image", "no.png", env={"MLX_VLM_MOXIN_TRACEBACK": "1"})
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_huge_but_legal_picture_is_answered(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (9000, 9000)).save(path)
    result = ask(HF_CHECKPOINT, "--image", str(path))
    assert result.returncode == 0, result.stderr
