"""The card of stock ``mlx_vlm.convert``: ours for Moxin, mlx-vlm's for other models."""

import json

import mlx_vlm.convert  # noqa: F401
import pytest
from huggingface_hub import ModelCard
from mlx_vlm import convert
from mlx_vlm.utils import create_model_card, upload_to_hub
from support import HF_CHECKPOINT, run_module


@pytest.fixture
def other_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    return tmp_path


@pytest.mark.parametrize("command", [["mlx_vlm", "convert"], ["mlx_vlm.convert"]], ids=" ".join)
def test_the_card_of_a_converted_model_is_ours(tmp_path, command):
    target = tmp_path / "x"
    arguments = ["--hf-path", str(HF_CHECKPOINT), "--mlx-path", str(target), "-q", "--q-bits", "8"]
    result = run_module(*command, *arguments)
    assert result.returncode == 0, result.stderr
    card = ModelCard.load(target / "README.md")
    assert "Converted to MLX by mlx-vlm from a local directory" in card.text
    assert "8 bits, group size 64, affine." in card.text
    assert "Model type prismatic not supported" in card.text
    assert 'pip install "./mlx-vlm-moxin[cpu]"' in card.text
    assert "8-bit" in card.data.tags
    assert "license" not in card.data.to_dict()


def test_a_function_that_a_program_has_bound_already_is_ours_too(tmp_path):
    convert(str(HF_CHECKPOINT), str(tmp_path / "x"))
    assert "mlx-vlm-moxin" in (tmp_path / "x/README.md").read_text()


def test_other_models_keep_mlx_vlms_card(other_model):
    create_model_card(other_model)
    card = ModelCard.load(other_model / "README.md")
    assert card.data.library_name == "mlx"
    assert "moxin" not in str(card)


def test_the_upload_keeps_the_card_and_names_the_repository(tmp_path, monkeypatch):
    convert(str(HF_CHECKPOINT), str(tmp_path / "x"))
    monkeypatch.setattr("mlx_vlm_moxin.conversion.upload.get_token", lambda: None)
    with pytest.raises(OSError, match="there is no Hugging Face token"):
        upload_to_hub(str(tmp_path / "x"), "me/model")
    text = (tmp_path / "x/README.md").read_text()
    assert "# me/model\n" in text
    assert "--model me/model " in text
    assert "pip install -U mlx-vlm" not in text


def test_the_config_that_stock_convert_writes_is_read(tmp_path):
    convert(str(HF_CHECKPOINT), str(tmp_path / "x"))
    assert json.loads((tmp_path / "x/config.json").read_text())["model_type"] == "prismatic"
    assert "DINOv2 and SigLIP at 28 pixels" in (tmp_path / "x/README.md").read_text()
