"""``load`` equals mlx-vlm's, quantised as by its converter."""

import json
import logging
import sys
from pathlib import Path

import mlx.core as mx
import mlx_vlm
import pytest
from comparing import assert_same_parameters, size, tokens
from mlx.utils import tree_flatten
from mlx_vlm.trainer.peft import get_peft_model
from mlx_vlm.trainer.peft.utils import save_adapter
from support import HF_CHECKPOINT, TINY, active_memory, run_python

import mlx_vlm_moxin
from mlx_vlm_moxin import load

SETTINGS = [
    (8, 64, "affine"),
    (4, 32, "affine"),
    (4, 32, "mxfp4"),
]
OTHER_SETTINGS = [
    *((bits, 64, "affine") for bits in (2, 3, 4, 5, 6)),
    (8, 128, "affine"),
    (4, 16, "nvfp4"),
    (8, 32, "mxfp8"),
]


def test_without_options_it_is_mlx_vlms_load():
    model, processor = load(HF_CHECKPOINT)
    stock_model, stock_processor = mlx_vlm.load(str(HF_CHECKPOINT))
    assert_same_parameters(model, stock_model)
    assert type(processor) is type(stock_processor)
    assert not model.training
    assert tokens(model, processor) == tokens(stock_model, stock_processor)


@pytest.mark.parametrize(
    ("bits", "group_size", "mode"),
    [*SETTINGS, *(pytest.param(*row, marks=pytest.mark.slow) for row in OTHER_SETTINGS)],
)
def test_quantised_on_the_fly_is_what_stock_convert_writes(converted, bits, group_size, mode):
    model, processor = load(HF_CHECKPOINT, quantize=bits, group_size=group_size, mode=mode)
    stock_model, stock_processor = mlx_vlm.load(str(converted(bits, group_size, mode)))
    assert_same_parameters(model, stock_model)
    head = model.language_model.lm_head
    assert (head.bits, head.group_size, head.mode) == (bits, group_size, mode)
    assert tokens(model, processor) == tokens(stock_model, stock_processor)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_peak_of_memory_stays_under_the_unquantised_size_and_a_layer(bf16_model, bits):
    layer = size(bf16_model.layers[0])
    before = active_memory()
    model, _ = load(HF_CHECKPOINT, quantize=bits)
    peak = mx.get_peak_memory() - before
    assert size(model) < peak < size(bf16_model) + layer


def test_lazy_leaves_the_weights_in_their_files():
    before = active_memory()
    model, _ = load(HF_CHECKPOINT, lazy=True)
    assert mx.get_peak_memory() - before < size(model) / 10


def test_an_ominix_export_is_loaded_with_its_packed_weights(converted, ominix):
    model, processor = load(ominix)
    stock_model, stock_processor = mlx_vlm.load(str(converted(8)))
    assert_same_parameters(model, stock_model)
    assert tokens(model, processor) == tokens(stock_model, stock_processor)


def test_a_checkpoint_that_has_the_requested_settings_is_unchanged(converted, caplog):
    model, _ = load(converted(8), quantize=8)
    assert_same_parameters(model, mlx_vlm.load(str(converted(8)))[0])
    assert not caplog.records


@pytest.mark.parametrize("source", ["converted", "ominix"])
def test_other_settings_quantise_the_unpacked_weights_and_say_so(source, request, caplog):
    path = request.getfixturevalue(source)
    path = path if isinstance(path, Path) else path(8)
    with caplog.at_level(logging.WARNING):
        model, _ = load(path, quantize=4, group_size=32)
    assert "quantised to 8 bits already" in caplog.text
    head = model.language_model.lm_head
    assert (head.bits, head.group_size) == (4, 32)
    stored = mlx_vlm.load(str(path))[0] if source == "converted" else load(path)[0]
    packed = stored.language_model.lm_head
    weight = mx.dequantize(packed.weight, packed.scales, packed.biases, 64, 8)
    assert mx.array_equal(head.weight, mx.quantize(weight, 32, 4)[0])


def test_sampling_defaults_come_along_when_weights_are_quantised(tmp_path):
    from source_checkpoints import copy_checkpoint, edit_json

    path = copy_checkpoint(HF_CHECKPOINT, tmp_path / "checkpoint")
    edit_json(path / "generation_config.json", temperature=0.7, do_sample=True)
    assert load(path)[0].config.temperature == load(path, quantize=8)[0].config.temperature == 0.7


def test_an_adapter_goes_onto_the_quantised_decoder(tmp_path):
    model, _ = load(HF_CHECKPOINT)
    get_peft_model(model, rank=2, verbose=False)
    trained = {n: mx.ones(v.shape) for n, v in tree_flatten(model.trainable_parameters())}
    model.load_weights(list(trained.items()), strict=False)
    save_adapter(model, tmp_path / "adapters.safetensors")
    adapted, processor = load(HF_CHECKPOINT, quantize=8, adapter_path=tmp_path)
    plain, _ = load(HF_CHECKPOINT, quantize=8)
    assert adapted.layers[0].self_attn.q_proj.linear.bits == 8
    assert tokens(adapted, processor) != tokens(plain, processor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": 7}, "quantize=7 does not exist in MLX; mode affine has 2, 3, 4, 5, 6, 8"),
        ({"quantize": 0}, "quantize=0 does not exist"),
        ({"quantize": True}, "quantize=True does not exist"),
        ({"quantize": 8, "group_size": 256}, "group_size=256 does not exist .* 32, 64, 128"),
        (
            {"quantize": 4, "mode": "mxfp4", "group_size": 64},
            "group_size=64 does not exist .* mxfp4 has 32",
        ),
        ({"quantize": 4, "mode": "gguf"}, "mode='gguf' does not exist; MLX has"),
        ({"mode": "mxfp4"}, "mode='mxfp4' has no effect without quantize"),
        ({"group_size": 7}, "group_size=7 has no effect without quantize"),
        ({"revision": "v2"}, "is a local directory, which has one version: revision 'v2'"),
    ],
)
def test_settings_that_mlx_does_not_have_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load(HF_CHECKPOINT, **options)


@pytest.mark.parametrize(("bits", "group_size", "mode"), [(4, 32, "mxfp4"), (8, 64, "affine")])
def test_the_group_size_is_the_modes_by_default(bits, group_size, mode):
    model, _ = load(HF_CHECKPOINT, quantize=bits, mode=mode)
    head = model.language_model.lm_head
    assert (head.bits, head.group_size, head.mode) == (bits, group_size, mode)


def test_a_tilde_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", str(HF_CHECKPOINT.parent))
    model, _ = load(f"~/{HF_CHECKPOINT.name}", lazy=True)
    assert model.config.model_type == "prismatic"


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "a/b/c", "nowhere"])
def test_a_path_is_never_used_as_a_repository_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{name} is neither a local directory nor a Hub"):
        load(name)


def test_mlx_vlm_names_the_command_that_converts_an_ominix_export(ominix):
    with pytest.raises(
        ValueError, match=f"OminiX export.* mlx_vlm_moxin convert --hf-path {ominix}"
    ):
        mlx_vlm.load(str(ominix))


@pytest.mark.parametrize("load_any", [load, lambda path: mlx_vlm.load(str(path))])
def test_what_mlx_lm_converts_is_named_as_the_decoder_alone(load_any, fp32_checkpoint, tmp_path):
    from mlx_lm import convert

    convert(str(fp32_checkpoint), str(tmp_path / "text"))
    with pytest.raises(ValueError, match="holds the decoder alone, as mlx_lm's fuse and convert"):
        load_any(tmp_path / "text")


def test_a_path_that_is_nothing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is neither a local directory nor a Hub"):
        load(tmp_path / "nowhere")


def test_a_directory_without_a_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load(tmp_path)


def test_a_native_run_directory_gets_the_command_that_converts_it():
    with pytest.raises(ValueError, match=r"python -m mlx_vlm_moxin convert --hf-path .*native"):
        load(TINY / "native")


def test_another_model_is_refused_with_its_type(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    with pytest.raises(ValueError, match="has model_type 'qwen2_vl'"):
        load(tmp_path)


def test_the_library_works_where_python_reads_no_start_up_files():
    code = """
import sys
sys.path.extend(sys.argv[2:])
from mlx_vlm_moxin import load
print(load(sys.argv[1], quantize=8)[0].language_model.lm_head.bits)
"""
    paths = [path for path in sys.path if path]
    assert run_python(code, HF_CHECKPOINT, *paths, options=["-S"]).strip() == "8"


def test_every_public_name_is_there_and_no_other():
    for name in mlx_vlm_moxin.__all__:
        assert callable(getattr(mlx_vlm_moxin, name))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = mlx_vlm_moxin.quantise
