"""config.json: what it may leave out, and what is refused with which words."""

import json

import pytest
from mlx_vlm.models.moxin.config import ModelConfig, TextConfig, VisionConfig
from mlx_vlm.models.moxin.towers import DINO_ID, SIGLIP_ID
from support import HF_CHECKPOINT

PRISMATIC = json.loads((HF_CHECKPOINT / "config.json").read_text(encoding="utf-8"))


def test_missing_text_settings_take_the_library_defaults_of_mistral():
    config = TextConfig.from_dict({"num_hidden_layers": 36, "vocab_size": 32064})
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (4096, 14336, 128)
    assert (config.num_attention_heads, config.num_key_value_heads) == (32, 8)
    assert (config.rms_norm_eps, config.rope_theta, config.sliding_window) == (1e-6, 1e4, 4096)
    assert len(config.layer_types) == 36


def test_missing_text_settings_take_the_library_defaults_of_llama():
    config = TextConfig.from_dict({"model_type": "llama", "vocab_size": 32064})
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (4096, 11008, 128)
    assert (config.num_attention_heads, config.num_key_value_heads) == (32, 32)
    assert (config.rms_norm_eps, config.rope_theta, config.sliding_window) == (1e-6, 1e4, None)


def test_llama_has_no_window_whatever_its_config_says():
    config = TextConfig.from_dict({"model_type": "llama", "sliding_window": 64})
    assert config.sliding_window is None
    windowed = TextConfig.from_dict({"model_type": "mistral", "sliding_window": 64})
    assert windowed.sliding_window == 64
    assert TextConfig.from_dict({"sliding_window": None}).sliding_window is None


@pytest.mark.parametrize(
    "written",
    [{"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}],
)
def test_the_rope_base_is_read_as_old_and_new_transformers_write_it(written):
    config = TextConfig.from_dict(written)
    assert config.rope_theta == 5e5
    assert config.rope_scaling is None


def test_scaled_rope_parameters_reach_the_rope():
    parameters = {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
    assert TextConfig.from_dict({"rope_parameters": parameters}).rope_scaling == parameters


def test_an_empty_vision_config_is_the_real_model():
    config = VisionConfig.from_dict({})
    assert (config.num_patches, config.hidden_size) == (256, 2176)
    assert (config.dino.num_blocks, config.siglip.num_blocks) == (23, 26)
    assert (config.dino.num_prefix_tokens, config.siglip.num_prefix_tokens) == (5, 0)
    assert config.siglip.intermediate_size == int(3.7362 * 1152)


def test_configs_do_not_share_their_towers():
    VisionConfig().dino.hidden_size = 1
    assert VisionConfig().dino.hidden_size == 1024


def test_visual_tokens_take_the_ids_above_the_padding_token():
    config = ModelConfig.from_dict(PRISMATIC)
    assert (config.pad_token_id, config.image_token_index) == (512, 513)


def test_to_dict_is_plain_json_and_comes_back_equal():
    config = ModelConfig.from_dict({**PRISMATIC, "model_type": "moxin"})
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"timm_model_ids": ["vit_base_patch16_224"]}, "vit_base_patch16_224"),
        ({"timm_model_ids": [DINO_ID, DINO_ID]}, DINO_ID),
        ({"timm_model_ids": []}, "[]"),
        ({"timm_model_ids": [["nested"]]}, "nested"),
        ({"timm_model_ids": [SIGLIP_ID, DINO_ID]}, SIGLIP_ID),
        ({"timm_model_ids": None}, "None"),
        ({"arch_specifier": "no-align+mlp"}, "no-align+mlp"),
        ({"llm_backbone_id": "phi-2-3b"}, "phi-2-3b"),
        ({"text_config": {"model_type": "phi"}}, "phi"),
    ],
)
def test_another_prismatic_model_is_refused_with_what_was_found(changed, found):
    with pytest.raises(ValueError, match="not supported") as error:
        ModelConfig.from_dict({**PRISMATIC, **changed})
    assert found in str(error.value)
    assert "Supported: timm_model_ids" in str(error.value)


def test_an_activation_for_each_tower_is_needed():
    config = {**PRISMATIC, "timm_override_act_layers": ["quick_gelu"]}
    with pytest.raises(ValueError, match="has 1 entries for 2 timm_model_ids"):
        ModelConfig.from_dict(config)


def test_an_unknown_prompt_is_refused():
    params = {**ModelConfig.from_dict(PRISMATIC).to_dict(), "model_type": "moxin"}
    with pytest.raises(ValueError, match=r"prompt_format is 'chatml'; allowed: one of pure"):
        ModelConfig.from_dict({**params, "prompt_format": "chatml"})


@pytest.mark.parametrize("name", ["text_config", "pad_token_id"])
def test_a_config_without_what_is_needed_names_it(name):
    params = {key: value for key, value in PRISMATIC.items() if key != name}
    with pytest.raises(ValueError, match=f"{name} missing"):
        ModelConfig.from_dict({**params, "model_type": "moxin"})


@pytest.mark.parametrize(
    "nonsense",
    [
        {"hidden_size": 0},
        {"num_hidden_layers": -1},
        {"vocab_size": "many"},
        {"rms_norm_eps": None},
        {"num_key_value_heads": True},
        {"num_attention_heads": 8, "num_key_value_heads": 3},
        {"hidden_act": "relu"},
    ],
)
def test_nonsense_text_values_are_named(nonsense):
    with pytest.raises(ValueError, match=r"^config\.json: .*" + list(nonsense)[-1]):
        TextConfig.from_dict(nonsense)


@pytest.mark.parametrize(
    "nonsense",
    [{"image_size": 13}, {"patch_size": 0}, {"dino": {"hidden_size": 100}}],
)
def test_nonsense_vision_values_are_named(nonsense):
    with pytest.raises(ValueError, match=r"^config\.json: "):
        VisionConfig.from_dict(nonsense)


def test_a_vocabulary_without_room_for_visual_tokens_is_refused():
    text_config = {**PRISMATIC["text_config"], "vocab_size": 514}
    with pytest.raises(ValueError, match="ids above pad_token_id must be free"):
        ModelConfig.from_dict({**PRISMATIC, "text_config": text_config})
