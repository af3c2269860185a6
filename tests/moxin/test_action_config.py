"""Settings of an action model that contradict each other or lack a part are refused."""

import pytest
from mlx_vlm.models.moxin.action_config import ActionConfig

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
