"""Sources are recognised by the contents of their files, or refused in one line."""

import json

import mlx.core as mx
import mlx_vlm
import pytest
from comparing import assert_same_parameters
from mlx_vlm import convert as upstream_convert
from source_checkpoints import (
    FLOAT32,
    NATIVE_FILES,
    converted,
    copy_checkpoint,
    edit_json,
    load_weights,
    refused,
    with_weights,
    write_ominix,
)
from support import HF_CHECKPOINT

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.sources import open_source
from mlx_vlm_moxin.checkpoints.sources.saved import config_dtype
from mlx_vlm_moxin.conversion.source_files import SourceFiles


class TestRecognition:
    def test_an_hf_converted_checkpoint_is_recognised(self):
        source = open_source(str(HF_CHECKPOINT))
        assert (source.kind, source.is_loadable) == ("an HF-converted Prismatic checkpoint", True)
        assert (source.dtype, source.quantization) == ("bfloat16", None)

    def test_a_native_run_is_recognised(self):
        source = NATIVE_FILES.open()
        assert (source.kind, source.is_loadable) == ("a native Prismatic run directory", False)
        assert (source.dtype, source.quantization) == ("bfloat16", None)

    def test_an_ominix_export_is_recognised(self, tmp_path):
        source = open_source(str(write_ominix(tmp_path / "x", bits=6, group_size=32)))
        assert (source.kind, source.is_loadable) == ("an OminiX export", False)
        assert source.quantization == {"group_size": 32, "bits": 6, "mode": "affine"}

    @pytest.mark.parametrize("quantize", [False, True])
    def test_conversions_by_stock_mlx_vlm_are_recognised(self, tmp_path, quantize):
        upstream_convert(str(HF_CHECKPOINT), str(tmp_path / "x"), quantize, trust_remote_code=False)
        source = open_source(str(tmp_path / "x"))
        assert (source.kind, source.is_loadable) == ("an MLX conversion", True)
        assert (source.quantization is not None) == quantize

    def test_what_stock_dequantising_leaves_behind_is_not_believed(self, tmp_path):
        upstream_convert(str(HF_CHECKPOINT), str(tmp_path / "q"), True, trust_remote_code=False)
        upstream_convert(
            str(tmp_path / "q"), str(tmp_path / "d"), dequantize=True, trust_remote_code=False
        )
        assert "quantization" in json.loads((tmp_path / "d" / "config.json").read_text())
        assert open_source(str(tmp_path / "d")).quantization is None

    @pytest.mark.parametrize(
        ("files", "found"),
        [
            ({}, "no config.json, only nothing"),
            ({"weights.bin": "x"}, "no config.json, only weights.bin"),
            ({"config.json": "{}"}, "no safetensors, only config.json"),
        ],
    )
    def test_other_directories_are_refused(self, tmp_path, files, found):
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        message = refused(tmp_path)
        assert f"found {found}. Supported: a native Prismatic run directory" in message
        assert "OminiX export" in message

    def test_another_model_is_refused(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "llava"}')
        mx.save_safetensors(str(tmp_path / "model.safetensors"), {"a.weight": mx.zeros((1,))})
        assert "model_type 'llava' with tensors such as a.weight" in refused(tmp_path)

    def test_another_prismatic_model_is_refused(self, tmp_path):
        directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
        edit_json(directory / "config.json", llm_backbone_id="llama2-7b-pure", text_config={})
        assert "This Prismatic checkpoint is not supported" in refused(directory)

    def test_a_file_is_refused(self):
        assert "give the directory" in refused(HF_CHECKPOINT / "config.json")

    def test_a_path_that_does_not_exist_is_refused(self):
        assert "neither a local directory nor a Hub" in refused("no/such/place", FileNotFoundError)

    def test_towers_for_a_source_that_has_its_own_are_refused(self):
        with pytest.raises(ValueError, match="--clip, --in1k and --llm are for native"):
            SourceFiles(str(HF_CHECKPOINT), dino="x").open()


# The config.json that this package wrote before it supported other towers and prompts.
EARLIER_TOWER = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_register_tokens",
    "class_token",
    "layer_scale",
    "layer_norm_eps",
)
EARLIER = ("text_config", "projector_config", "model_type", "pad_token_id", "image_token_index")
EARLIER += ("bos_token_id", "eos_token_id", "quantization", "quantization_config")


@pytest.mark.parametrize("bits", [None, 8])
def test_conversions_of_earlier_versions_load_as_before(tmp_path, bits):
    options = QuantizeOptions(quantize=True, q_bits=bits) if bits else FLOAT32
    path = converted(HF_CHECKPOINT, tmp_path / "x", options)
    config = json.loads((path / "config.json").read_text())
    model, processor = mlx_vlm.load(str(path))
    vision = config["vision_config"]
    earlier = {name: config[name] for name in EARLIER if name in config}
    earlier["vision_config"] = {
        "model_type": "moxin_vision",
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        **{name: {key: vision[name][key] for key in EARLIER_TOWER} for name in ("dino", "siglip")},
    }
    (path / "config.json").write_text(json.dumps(earlier))
    old, old_processor = mlx_vlm.load(str(path))
    assert_same_parameters(model, old)
    assert old.config.vision_config == model.config.vision_config
    assert old_processor.chat_template == processor.chat_template
    assert vars(old_processor.image_processor) == vars(processor.image_processor)
    again = converted(path, tmp_path / "again", QuantizeOptions())
    assert_same_parameters(model, mlx_vlm.load(str(again))[0])


class TestOminiX:
    def test_attention_is_joined_row_by_row(self, tmp_path):
        ours = open_source(str(write_ominix(tmp_path / "x"))).tensors
        hf = open_source(str(HF_CHECKPOINT)).tensors
        towers = [name for name in hf if name.startswith("vision_tower.")]
        assert any(name.endswith("attn.qkv.bias") for name in towers)
        for name in towers:
            assert mx.array_equal(ours[name].load(), hf[name].load()), name

    def test_packed_tensors_are_those_of_the_file(self, tmp_path):
        directory = write_ominix(tmp_path / "x")
        ours = open_source(str(directory)).tensors
        packed = [name for name in load_weights(directory) if name.endswith(".inner.weight")]
        assert len(packed) == 25
        for name, value in load_weights(directory).items():
            if name.endswith((".inner.weight", ".scales", ".biases")):
                assert mx.array_equal(ours[name.replace(".inner.", ".")].load(), value)

    def test_a_missing_part_of_attention_is_named(self, tmp_path):
        directory = write_ominix(tmp_path / "x")
        name = "vision_backbone.featurizer.blocks.0.attn.k_proj.weight"
        broken = with_weights(tmp_path / "y", lambda weights: weights.pop(name), directory)
        message = refused(broken)
        assert "has only q, v of the parts q, k and v of" in message
        assert "blocks.0.attn.qkv.weight" in message

    @pytest.mark.parametrize(
        ("name", "again"),
        [
            ("language_model.lm_head.inner.weight", "language_model.lm_head.weight"),
            (
                "vision_backbone.featurizer.blocks.0.attn.q_proj.weight",
                "vision_backbone.featurizer.blocks.0.attn.q_proj.inner.weight",
            ),
        ],
    )
    def test_one_tensor_under_two_names_is_refused(self, tmp_path, name, again):
        directory = write_ominix(tmp_path / "x")
        broken = with_weights(
            tmp_path / "y", lambda weights: weights.update({again: weights[name]}), directory
        )
        assert "twice, the second time as" in refused(broken)

    def test_an_ominix_export_without_quantization_settings_is_refused(self, tmp_path):
        directory = write_ominix(tmp_path / "x")
        (directory / "quantize_config.json").unlink()
        assert "quantize_config.json" in refused(directory, FileNotFoundError)
        (directory / "quantize_config.json").write_text("{}")
        assert "no `quantization` with group_size and bits" in refused(directory)


class TestSaved:
    def test_a_conversion_without_quantization_settings_is_refused(self, tmp_path):
        upstream_convert(str(HF_CHECKPOINT), str(tmp_path / "q"), True, trust_remote_code=False)
        edit_json(tmp_path / "q" / "config.json", quantization=None)
        assert "lacks `quantization` for packed tensors" in refused(tmp_path / "q")

    @pytest.mark.parametrize(
        ("config", "dtype"),
        [
            ({"torch_dtype": "torch.float16"}, "float16"),
            ({"dtype": "bfloat16"}, "bfloat16"),
            ({"torch_dtype": None, "text_config": {"dtype": "float32"}}, "float32"),
            ({"dtype": "float16", "text_config": {"torch_dtype": "float32"}}, "float16"),
            ({"text_config": {"torch_dtype": "bfloat16", "dtype": "float32"}}, "bfloat16"),
            ({"text_config": None}, None),
            ({}, None),
        ],
        ids=str,
    )
    def test_the_dtype_is_read_at_the_top_then_for_the_decoder(self, config, dtype):
        assert config_dtype(config) == dtype

    def test_one_tensor_under_two_names_is_refused(self, tmp_path):
        name = "vision_backbone.featurizer.blocks.0.ls1."

        def change(weights):
            weights[f"{name}gamma"] = weights[f"{name}scale_factor"]

        message = refused(with_weights(tmp_path / "x", change))
        assert "has vision_tower.dino.blocks.0.ls1.gamma twice, under two names" in message

    @pytest.mark.parametrize(
        "name", ["vision_backbone.featurizer.patch_embed.proj.weight", "projector.fc1.weight"]
    )
    def test_a_missing_tensor_that_sizes_are_read_from_is_named(self, tmp_path, name):
        message = refused(with_weights(tmp_path / "x", lambda weights: weights.pop(name)))
        assert "no tensor" in message or "no fused-gelu-mlp projector" in message

    @pytest.mark.parametrize(
        "changes",
        [
            {"text_config": "mistral"},
            {"text_config": ["model_type"]},
            {"pad_token_id": "x"},
        ],
    )
    def test_a_malformed_config_is_refused(self, tmp_path, changes):
        directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
        edit_json(directory / "config.json", **changes)
        refused(directory)

    @pytest.mark.parametrize(
        "name", ["config.json", "preprocessor_config.json", "generation_config.json"]
    )
    @pytest.mark.parametrize("content", ["{", "[]", "\\xff", "[" * 100_000])
    def test_malformed_json_is_refused(self, tmp_path, name, content):
        directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
        (directory / name).write_text(content)
        refused(directory)

    def test_a_broken_tokenizer_is_refused(self, tmp_path):
        directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x")
        (directory / "tokenizer.json").write_text('{"version": "1.0"}')
        assert "tokenizer" in refused(directory)
