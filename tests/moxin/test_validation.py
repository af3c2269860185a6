"""Settings of a wrong type or size are refused with file, name, value and what is allowed."""

import json

import pytest
from mlx_vlm.models.moxin.config import GenerationDefaults, ModelConfig, VisionConfig
from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from mlx_vlm.models.moxin.text_config import TextConfig
from mlx_vlm.models.moxin.validation import check_setting, check_settings, read_object
from source_checkpoints import break_tokenizer, copy_checkpoint, edit_json
from support import HF_CHECKPOINT

PRISMATIC = json.loads((HF_CHECKPOINT / "config.json").read_text())
MOXIN = {**PRISMATIC, "model_type": "moxin"}
NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, 1),
        (int, 2**24),
        (float, 1),
        (float, 1e-30),
        (int | None, None),
        (bool, False),
        (str, "a"),
        (list[int], [1, 2]),
        (list[int], (1, 2)),
        (list[list[float]], [[0.5], []]),
        (int | list[int], 3),
        (int | list[int], [3]),
        (dict, {}),
        (dict[str, int] | None, {"a": 1}),
    ],
)
def test_allowed_values_are_accepted(hint, value):
    check_setting("x.json", "x", value, hint)


@pytest.mark.parametrize(
    ("hint", "value", "allowed"),
    [
        (int, 0, "a whole number from 1 to 16777216"),
        (int, 2**24 + 1, "a whole number from 1 to 16777216"),
        (int, True, "a whole number"),
        (int, 1.0, "a whole number"),
        (int, "1", "a whole number"),
        (int, None, "a whole number"),
        (float, 0, "a number above 0 to"),
        (float, -1.0, "a number above 0"),
        (float, NAN, "a number"),
        (float, INFINITE, "a number"),
        (float, True, "a number"),
        (bool, 1, "true or false"),
        (str, 1, "a text"),
        (str, "a" * 1000, "a text"),
        (list[int], 1, "a list of items that are each a whole number"),
        (list[int], [1, 0], "a list"),
        (list[int], "ab", "a list"),
        (int | None, "a", "a whole number from 1 to 16777216, or null"),
        (dict, [], "an object"),
    ],
)
def test_other_values_are_refused(hint, value, allowed):
    with pytest.raises(ValueError, match=r"^x\.json: a\.b is .*; allowed: ") as error:
        check_setting("x.json", "a.b", value, hint)
    assert allowed in str(error.value)
    assert len(str(error.value)) < 200


def test_bounds_and_choices_of_a_field_are_checked():
    check_setting("x.json", "x", 0, int, low=0)
    check_setting("x.json", "x", 0, float, low=0)
    check_setting("x.json", "x", "a", str, choices=["a", "b"])
    with pytest.raises(ValueError, match="from 0 to 255"):
        check_setting("x.json", "x", 256, int, low=0, high=255)
    with pytest.raises(ValueError, match="one of a, b"):
        check_setting("x.json", "x", "c", str, choices=["a", "b"])


@pytest.mark.parametrize(
    "value",
    [[[]] * 10_000, {"a" * 10_000: 1}, "b" * 10_000, 10**4000],
    ids=["list", "dict", "str", "int"],
)
def test_large_values_are_not_repeated_in_full(value):
    with pytest.raises(ValueError, match="allowed") as error:
        check_setting("x.json", "x", value, float)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"num_hidden_layers": 10**9}, "text_config.num_hidden_layers is 1000000000"),
        ({"rope_theta": NAN}, "text_config.rope_theta is nan"),
        ({"sliding_window": "a"}, "text_config.sliding_window is 'a'"),
        ({"rms_norm_eps": 2.0}, "text_config.rms_norm_eps is 2.0"),
        ({"head_dim": 3}, "text_config.head_dim must be an even number"),
        ({"vocab_size": 1e6}, "text_config.vocab_size is 1000000.0"),
        ({"rope_scaling": "linear"}, "text_config.rope_scaling is 'linear'"),
        ({"layer_types": [1]}, "text_config.layer_types"),
        ({"attention_bias": 1}, "text_config.attention_bias is 1; allowed: true or false"),
        ({"tie_word_embeddings": True}, "text_config.tie_word_embeddings is True"),
    ],
)
def test_wrong_text_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=r"^config\.json: ") as error:
        TextConfig.from_dict(settings)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"image_size": -1}, "vision_config.image_size is -1"),
        ({"image_size": 10**5}, "vision_config.image_size is 100000"),
        ({"dino": {"hidden_size": "a"}}, "vision_config.dino.hidden_size is 'a'"),
        ({"dino": {"num_hidden_layers": 1}}, "vision_config.dino.num_hidden_layers is 1"),
        ({"siglip": {"num_hidden_layers": 10**9}}, "vision_config.siglip.num_hidden_layers"),
        ({"dino": {"layer_norm_eps": 0}}, "vision_config.dino.layer_norm_eps is 0"),
        ({"dino": {"activation": "relu"}}, "one of gelu, quick_gelu"),
        ({"dino": 3}, "vision_config.dino is 3"),
    ],
)
def test_wrong_vision_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=r"^config\.json: ") as error:
        VisionConfig.from_dict(settings)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"pad_token_id": -5}, "config.json: pad_token_id is -5"),
        ({"eos_token_id": "a"}, "config.json: eos_token_id is 'a'"),
        ({"eos_token_id": []}, "config.json: eos_token_id is []"),
        ({"eos_token_id": 10**6}, "config.json: eos_token_id is 1000000, but the vocabulary has"),
        ({"bos_token_id": None}, "config.json: bos_token_id is None"),
        ({"text_config": "a"}, "config.json: text_config is 'a'"),
        ({"projector_config": {"model_type": "mlp"}}, "projector_config.model_type is 'mlp'"),
        ({"generation_config": {"top_p": 5}}, "generation_config.json: top_p is 5"),
        ({"generation_config": {"eos_token_id": None}}, "generation_config.json: eos_token_id"),
        ({"temperature": NAN}, "config.json: temperature is nan"),
        ({"quantization": 4}, "config.json: `quantization` is int"),
        ({"quantization": {"group_size": 0, "bits": 4}}, "group_size 0, bits 4, mode affine"),
        ({"quantization": {"group_size": 64, "bits": 4.0}}, "bits 4.0"),
        ({"quantization": {"group_size": 64, "bits": 4, "mode": []}}, "mode []"),
        ({"quantization": {"group_size": 64, "bits": 4, "mode": "nf4"}}, "mode nf4"),
        ({"quantization": {"bits": 4}}, "group_size None"),
        (
            {"quantization": {"group_size": 64, "bits": 4, "lm_head": {"bits": 7}}},
            "`quantization` of lm_head does not exist in MLX",
        ),
    ],
)
def test_wrong_settings_of_the_whole_model_are_named(settings, name):
    with pytest.raises(ValueError, match=r"^(generation_)?config\.json: ") as error:
        ModelConfig.from_dict({**MOXIN, **settings})
    assert name in str(error.value)


def test_without_ids_the_end_token_is_llamas_and_0_is_an_id_like_any_other():
    params = {name: value for name, value in MOXIN.items() if not name.startswith(("eos", "bos"))}
    assert ModelConfig.from_dict(params).eos_token_id == 2
    config = ModelConfig.from_dict({**MOXIN, "eos_token_id": 0, "bos_token_id": 0})
    assert (config.eos_token_id, config.bos_token_id) == (0, 0)


def test_several_end_tokens_and_settings_of_single_layers_are_allowed():
    quantization = {"group_size": 64, "bits": 4, "a": {"group_size": 32, "bits": 8}, "b": False}
    params = {**MOXIN, "eos_token_id": [2, 3], "quantization": quantization}
    assert ModelConfig.from_dict(params).eos_token_id == [2, 3]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"image_size": -1}, "image_size is -1"),
        ({"image_std": "a"}, "image_std is 'a'"),
        ({"image_std": [[0, 1, 1], [1, 1, 1]]}, "image_std"),
        ({"image_mean": [[NAN, 0, 0], [0, 0, 0]]}, "image_mean"),
        ({"image_mean": [[0, 0, 0]]}, "three numbers for each vision tower"),
        ({"image_mean": [[0, 0], [0, 0]]}, "three numbers for each vision tower"),
        ({"letterbox_fill": [[0, 0, 256]] * 2}, "letterbox_fill"),
        ({"resize_strategy": 3}, "resize_strategy is 3"),
        ({"tvf_normalize_params": [1]}, "tvf_normalize_params"),
    ],
)
def test_wrong_image_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=r"^preprocessor_config\.json: ") as error:
        MoxinImageProcessor.from_dict(settings)
    assert name in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"input_sizes": []},
        {"input_sizes": [[], []]},
        {"input_sizes": [[28], [3, 28, 28]]},
        {"input_sizes": "ab"},
        {"interpolations": 3},
        {"image_resize_strategy": None},
        {"tvf_normalize_params": [{}, {}]},
        {"tvf_normalize_params": [{"mean": 1, "std": 1}] * 2},
        {"tvf_resize_params": [{"size": "x" * 1000}] * 2},
        {"tvf_letterbox_fill": [1]},
    ],
)
def test_wrong_image_settings_of_an_hf_converted_checkpoint_are_refused(settings):
    written = json.loads((HF_CHECKPOINT / "preprocessor_config.json").read_text())
    with pytest.raises(ValueError, match=r"^preprocessor_config\.json: ") as error:
        MoxinImageProcessor.from_dict({**written, **settings})
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bos_token_id": 3}, "bos_token_id is 3, but the tokenizer's is 1"),
        ({"pad_token_id": 500}, "pad_token_id is 500, but the tokenizer's is 512"),
        ({"image_token_index": 514, "pad_token_id": 513}, "pad_token_id is 513"),
    ],
)
def test_a_tokenizer_with_other_ids_than_the_model_is_refused(tmp_path, changes, message):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x", skip=("*.safetensors",))
    edit_json(directory / "config.json", **changes)
    with pytest.raises(ValueError, match=r"^config\.json: ") as error:
        MoxinProcessor.from_pretrained(directory)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        break_tokenizer,
        lambda directory: (directory / "tokenizer.json").write_text("<html>"),
        lambda directory: (directory / "tokenizer.json").write_text("[" * 10_000),
        lambda directory: (directory / "tokenizer_config.json").write_text('"a"'),
    ],
    ids=["panic", "html", "nested", "string"],
)
def test_an_unreadable_tokenizer_is_refused(tmp_path, change):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "x", skip=("*.safetensors",))
    change(directory)
    with pytest.raises(ValueError, match=r"^The tokenizer in .* cannot be read") as error:
        MoxinProcessor.from_pretrained(directory)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, "\x00"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_files_that_hold_no_object_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        read_object(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "ends", "beyond"),
    [
        ("temperature", (0, 100), (-0.1, 100.1)),
        ("top_p", (0, 1), (-0.1, 1.1)),
        ("min_p", (0, 1), (-0.1, 1.1)),
        ("top_k", (0, 10**6), (-1,)),
        ("max_length", (0, 10**6), (-1,)),
        ("eos_token_id", (0,), (-1,)),
        ("bos_token_id", (0,), (-1,)),
        ("pad_token_id", (0,), (-1,)),
    ],
)
def test_generation_settings_are_accepted_up_to_the_ends_of_their_ranges(name, ends, beyond):
    for value in ends:
        check_settings(GenerationDefaults, {name: value}, file="generation_config.json")
    for value in beyond:
        with pytest.raises(ValueError, match=rf"^generation_config\.json: {name}"):
            check_settings(GenerationDefaults, {name: value}, file="generation_config.json")
