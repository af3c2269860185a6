"""config.json: which settings are optional, and the messages for wrong ones."""

import json

import pytest
from mlx_vlm.models.moxin.config import ModelConfig, VisionConfig
from mlx_vlm.models.moxin.towers import DINO_ID, SIGLIP_ID
from support import HF_CHECKPOINT

PRISMATIC = json.loads((HF_CHECKPOINT / "config.json").read_text(encoding="utf-8"))


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
    [{"image_size": 13}, {"patch_size": 0}, {"dino": {"hidden_size": 100}}],
)
def test_nonsense_vision_values_are_named(nonsense):
    with pytest.raises(ValueError, match=r"^config\.json: "):
        VisionConfig.from_dict(nonsense)


def test_a_vocabulary_without_room_for_visual_tokens_is_refused():
    text_config = {**PRISMATIC["text_config"], "vocab_size": 514}
    with pytest.raises(ValueError, match="ids above pad_token_id must be free"):
        ModelConfig.from_dict({**PRISMATIC, "text_config": text_config})
