"""The decoder's part of config.json: defaults of both libraries, and errors."""

import pytest
from mlx_vlm.models.moxin.text_config import TextConfig


def test_missing_text_settings_take_the_library_defaults_of_mistral():
    config = TextConfig.from_dict({"num_hidden_layers": 36, "vocab_size": 32064})
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (4096, 14336, 128)
    assert (config.num_attention_heads, config.num_key_value_heads) == (32, 8)
    assert (config.rms_norm_eps, config.rope_theta, config.sliding_window) == (1e-6, 1e4, 4096)
    assert config.max_position_embeddings == 32768
    assert len(config.layer_types) == 36


def test_missing_text_settings_take_the_library_defaults_of_llama():
    config = TextConfig.from_dict({"model_type": "llama", "vocab_size": 32064})
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (4096, 11008, 128)
    assert (config.num_attention_heads, config.num_key_value_heads) == (32, 32)
    assert (config.rms_norm_eps, config.rope_theta, config.sliding_window) == (1e-6, 1e4, None)
    assert config.max_position_embeddings == 4096


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


def test_without_any_setting_it_is_mistral_7b():
    config = TextConfig()
    assert (config.num_hidden_layers, config.vocab_size) == (32, 32000)
    assert (config.hidden_size, config.intermediate_size) == (4096, 14336)
    assert (config.num_attention_heads, config.num_key_value_heads) == (32, 8)
    assert (config.max_position_embeddings, config.sliding_window) == (32768, 4096)
    assert (config.rms_norm_eps, config.rope_theta, config.rope_traditional) == (1e-6, 1e4, False)
    assert not config.attention_bias
    assert not config.mlp_bias
    assert not config.tie_word_embeddings
