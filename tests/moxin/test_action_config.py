"""Settings of an action model that contradict each other or lack a part are refused."""

import pytest
from mlx_vlm.models.moxin.action_config import ActionConfig
from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.text_config import TextConfig

HEAD = {"decoding": "parallel", "head": "l1", "head_hidden_size": 8, "action_dim": 7}


def test_the_defaults_are_openvlas():
    config = ActionConfig()
    assert (config.decoding, config.chunk_size, config.num_images) == ("autoregressive", 1, 1)
    assert (config.normalization, config.append_token_id) == ("bounds_q99", 29871)
    assert (config.causal, config.drop_image_marker) == (True, False)
    assert (config.center_crop, config.policy_resize) == (False, False)
    assert config.head is config.action_dim is config.proprio_dim is None


@pytest.mark.parametrize("name", ["action_dim", "head_hidden_size"])
def test_a_head_needs_its_sizes(name):
    assert ActionConfig(**HEAD).head == "l1"
    with pytest.raises(ValueError, match=f"action_config.{name}"):
        ActionConfig(**{**HEAD, name: None})


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "l1", "head_hidden_size": 8, "action_dim": 7},
        {"proprio_dim": 8},
        {"chunk_size": 2},
        {"num_images": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_each_part_of_openvla_oft_needs_parallel_decoding(settings):
    ActionConfig(**settings, decoding="parallel")
    with pytest.raises(ValueError, match="need decoding 'parallel'"):
        ActionConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"decoding": "diffusion"},
        {"normalization": "zscore"},
        {"head": "film"},
        {"chunk_size": 0},
        {"append_token_id": -1},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_values_that_do_not_exist_are_named(settings):
    with pytest.raises(ValueError, match=f"action_config.{next(iter(settings))}"):
        ActionConfig(**settings)


@pytest.mark.parametrize(("vocab_size", "pad", "token"), [(32064, 32000, 29871), (512, 448, None)])
def test_a_vocabulary_without_the_space_of_llama_gets_none(vocab_size, pad, token):
    text_config = TextConfig(vocab_size=vocab_size)
    config = ModelConfig(text_config=text_config, pad_token_id=pad, norm_stats={"my_robot": {}})
    assert config.action_config.append_token_id == token


def test_an_appended_token_outside_of_the_vocabulary_is_refused():
    settings = {"text_config": TextConfig(vocab_size=512), "pad_token_id": 448}
    with pytest.raises(ValueError, match=r"append_token_id .* is 449, .* 0 to 448"):
        ModelConfig(**settings, action_config=ActionConfig(append_token_id=449))
