"""Options of mlx-vlm's commands that Moxin does not support: one line each, none missing."""

import importlib
import json
import os
import shutil
import sys
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import pytest
from command_option_cases import CASES, CONVERT, GENERATE, QUANTIZED, THREE_BITS, TRAIN
from mlx_vlm import convert
from mlx_vlm.server import cli
from mlx_vlm.server.runtime import runtime
from PIL import Image
from support import HF_CHECKPOINT, image_path, run_module

from mlx_vlm_moxin.plugin.command_errors import input_error


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Directories by the placeholder at the start of a case's argument."""
    paths = {"": HF_CHECKPOINT}
    for name, bits in ((QUANTIZED, 4), (THREE_BITS, 3)):
        paths[name] = tmp_path_factory.mktemp("quantized") / "checkpoint"
        options = {"quantize": True, "q_bits": bits, "q_group_size": 32}
        convert(str(HF_CHECKPOINT), str(paths[name]), trust_remote_code=False, **options)
    return paths


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two rows of supervised training."""
    folder = tmp_path_factory.mktemp("rows")
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes"}]
    row = json.dumps({"images": [image_path("photo")], "messages": turns})
    (folder / "train.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    return folder


def _serve(*args, **kwargs) -> None:
    """Replaces uvicorn: runs the application's start-up."""
    # mlx_vlm.server.app is the application, not the module.
    app = sys.modules["mlx_vlm.server.app"]
    app.get_cached_model(os.environ["MLX_VLM_PRELOAD_MODEL"], None, model_kind="text_generation")


@pytest.fixture
def error_of(monkeypatch, tmp_path, checkpoints, rows):
    """The last line of a command that is run in this process."""

    def run(module: str, case: str) -> str:
        kind = next(name for name in (QUANTIZED, THREE_BITS, "") if case.startswith(name))
        checkpoint, options = checkpoints[kind], case.removeprefix(kind).split()
        needed = {
            GENERATE: [] if "--image" in case else ["--image", image_path("photo")],
            TRAIN: ["--data", str(rows), "--iters", "1", "--output-path", str(tmp_path)],
            CONVERT: ["--mlx-path", str(tmp_path / "converted")],
        }.get(module, [])
        monkeypatch.setattr(sys, "argv", [module, "--model", str(checkpoint), *needed, *options])
        monkeypatch.setattr(cli.uvicorn, "run", _serve)
        # The server's main replaces it; later tests in this process need the original.
        monkeypatch.setattr(runtime, "config", runtime.config)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with mock.patch.dict(os.environ), pytest.raises((Exception, SystemExit)) as caught:
            importlib.import_module(module).main()
        if isinstance(caught.value, SystemExit):
            assert caught.value.code == 1
            return ""
        found = input_error(caught.value)
        assert found is not None, f"{caught.value!r} would be a traceback"
        return str(found)

    return run


@pytest.mark.parametrize(("module", "case", "part"), CASES)
def test_an_option_that_cannot_be_used_ends_in_one_line(error_of, capsys, module, case, part):
    # The chat catches every exception, prints it and exits with status 1.
    line = error_of(module, case) or " ".join(capsys.readouterr().out.split())
    assert part in line


def test_nothing_is_written_by_a_conversion_that_is_refused(error_of, tmp_path):
    error_of(CONVERT, "-q --q-bits 7")
    assert not (tmp_path / "converted").exists()


def test_weights_are_not_read_before_the_options_are_checked(error_of, monkeypatch):
    monkeypatch.setattr(nn.Module, "load_weights", None)
    assert "at least 0" in error_of(GENERATE, "--temperature -1")


def test_a_shape_that_leaves_no_pixel_of_a_narrow_picture_is_named(error_of, tmp_path):
    Image.new("RGB", (9, 300)).save(tmp_path / "narrow.png")
    case = f"--image {tmp_path / 'narrow.png'} --resize-shape 1 1"
    assert error_of(GENERATE, case) == "resize_shape 1 x 1 makes a picture of 0 x 1 pixels"


def test_an_adapter_with_trained_towers_is_not_resumed_without_them(error_of, tmp_path):
    names = ("vision_tower.a", "multi_modal_projector.b", "language_model.lora_a")
    mx.save_safetensors(str(tmp_path / "adapters"), {name: mx.zeros(1) for name in names})
    for path in (tmp_path, tmp_path / "adapters.safetensors"):
        line = error_of(TRAIN, f"--resume-adapter-file {path}")
        assert "holds 2 tensors of vision towers and projector, which would be lost" in line
        assert "add --train-vision" in line
        line = error_of(TRAIN, f"--resume-adapter-file {path} --train-vision")
        assert "adapter_config.json" in line
    (tmp_path / "adapters.safetensors").write_bytes(b"none")
    assert "cannot be read" in error_of(TRAIN, f"--resume-adapter-file {tmp_path}")


PROCESSES = [
    (("mlx_vlm", "generate", "--prompt", "Is it?", "--top-p", "5"), 1),
    (("mlx_vlm", "server", "--kv-bits", "7"), 3),
    (("mlx_vlm.train", "--data", "nowhere"), 1),
]


@pytest.mark.parametrize(("arguments", "status"), PROCESSES, ids=lambda value: str(value)[:30])
def test_the_process_ends_with_that_line_and_no_traceback(arguments, status):
    result = run_module(*arguments, "--model", HF_CHECKPOINT)
    assert result.returncode == status
    assert "Traceback" not in result.stdout + result.stderr
    assert "error: " in result.stderr


def test_a_copy_of_the_checkpoint_without_weights_is_named(tmp_path):
    path = shutil.copytree(HF_CHECKPOINT, tmp_path / "checkpoint")
    for file in path.glob("*.safetensors*"):
        file.unlink()
    result = run_module("mlx_vlm_moxin", "generate", "--model", path, "--prompt", "Is it?")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
