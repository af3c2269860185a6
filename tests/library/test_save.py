"""``save_quantized``: stock mlx-vlm loads what it saves."""

import json
import shutil
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx_vlm
import pytest
from comparing import assert_same_parameters, tokens
from mlx_vlm.trainer.peft import get_peft_model
from source_checkpoints import copy_checkpoint, edit_json
from support import HF_CHECKPOINT

from mlx_vlm_moxin import load, save_quantized
from mlx_vlm_moxin.library.save import quantization_of


@pytest.mark.parametrize(
    "options",
    [
        {"quantize": 8},
        {"quantize": 3, "group_size": 32},
        {"quantize": 4, "group_size": 32, "mode": "mxfp4"},
        {},
    ],
)
def test_stock_mlx_vlm_loads_what_was_saved(tmp_path, options):
    model, processor = load(HF_CHECKPOINT, **options)
    save_quantized(model, processor, tmp_path / "saved")
    stock_model, stock_processor = mlx_vlm.load(str(tmp_path / "saved"))
    assert_same_parameters(model, stock_model)
    assert tokens(model, processor) == tokens(stock_model, stock_processor)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["model_type"] == "moxin"
    assert config.get("quantization", {}).get("bits") == options.get("quantize")


@pytest.mark.parametrize("loads", [mlx_vlm.load, load, partial(load, quantize=8)])
def test_a_model_is_saved_after_its_source_has_moved(tmp_path, loads):
    source = copy_checkpoint(HF_CHECKPOINT, tmp_path / "source")
    edit_json(source / "generation_config.json", temperature=0.25)
    model, processor = loads(str(source))
    shutil.rmtree(source)
    save_quantized(model, processor, tmp_path / "saved")
    stock_model, _ = mlx_vlm.load(str(tmp_path / "saved"))
    assert_same_parameters(model, stock_model)
    assert stock_model.config.temperature == model.config.temperature == 0.25


def test_layers_with_other_settings_keep_them(tmp_path):
    model, processor = load(HF_CHECKPOINT)
    nn.quantize(model.layers[0].self_attn, 32, 8)
    for layer in model.layers[1:]:
        nn.quantize(layer.self_attn, 64, 4)
    settings = quantization_of(model)
    assert (settings["bits"], settings["group_size"]) == (4, 64)
    own = settings["language_model.model.layers.0.self_attn.q_proj"]
    assert (own["bits"], own["group_size"]) == (8, 32)
    save_quantized(model, processor, tmp_path / "saved")
    assert_same_parameters(model, mlx_vlm.load(str(tmp_path / "saved"))[0])


def test_a_model_that_is_there_is_kept_unless_it_is_to_be_replaced(tmp_path):
    model, processor = load(HF_CHECKPOINT, quantize=8)
    save_quantized(model, processor, tmp_path / "saved")
    other, _ = load(HF_CHECKPOINT, quantize=4)
    with pytest.raises(FileExistsError, match="saved exists; give another path or overwrite=True"):
        save_quantized(other, processor, tmp_path / "saved")
    assert_same_parameters(model, load(tmp_path / "saved")[0])
    save_quantized(other, processor, tmp_path / "saved", overwrite=True)
    assert_same_parameters(other, load(tmp_path / "saved")[0])


def test_a_model_can_replace_the_one_it_was_loaded_from(tmp_path):
    save_quantized(*load(HF_CHECKPOINT), tmp_path / "saved")
    model, processor = load(tmp_path / "saved", lazy=True)
    save_quantized(model, processor, tmp_path / "saved", overwrite=True)
    assert_same_parameters(load(tmp_path / "saved")[0], load(HF_CHECKPOINT)[0])


def test_an_adapter_is_refused_and_nothing_is_written(tmp_path):
    model, processor = load(HF_CHECKPOINT)
    get_peft_model(model, rank=2, verbose=False)
    with pytest.raises(ValueError, match="has an adapter"):
        save_quantized(model, processor, tmp_path / "saved")
    assert not [*tmp_path.iterdir()]


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    model, processor = load(HF_CHECKPOINT, quantize=8)

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(processor), "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        save_quantized(model, processor, tmp_path / "saved")
    assert not [*tmp_path.iterdir()]


def test_the_model_in_memory_is_as_before(tmp_path):
    model, processor = load(HF_CHECKPOINT, quantize=8)
    before = tokens(model, processor)
    save_quantized(model, processor, tmp_path / "saved")
    assert tokens(model, processor) == before
    assert model.model_type == "prismatic"
    assert mx.all(mx.isfinite(model.language_model.lm_head.scales)).item()
