"""RoPE settings for which MLX computes the same as transformers; others are refused."""

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.rope_utils import initialize_rope as mlx_lm_rope
from mlx_vlm.models.moxin.rope import complete_rope
from mlx_vlm.models.moxin.text_config import TextConfig
from mlx_vlm.models.rope_utils import initialize_rope as mlx_vlm_rope

DIMS, BASE = 64, 10000.0
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048,
}


def yarn_of_transformers(settings: dict, max_positions: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies and attention factor: ``_compute_yarn_parameters``, reimplemented."""
    factor = settings["factor"]
    original = settings.get("original_max_position_embeddings") or max_positions

    def scale(mscale: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    attention = settings.get("attention_factor")
    if attention is None:
        both = settings.get("mscale") and settings.get("mscale_all_dim")
        attention = scale()
        if both:
            attention = scale(settings["mscale"]) / scale(settings["mscale_all_dim"])

    def dimension(rotations: float) -> float:
        return DIMS * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(BASE))

    low = max(math.floor(dimension(settings.get("beta_fast") or 32)), 0)
    high = min(math.ceil(dimension(settings.get("beta_slow") or 1)), DIMS - 1)
    ramp = np.clip((np.arange(DIMS // 2) - low) / max(high - low, 0.001), 0, 1)
    frequencies = BASE ** -(np.arange(0, DIMS, 2) / DIMS)
    return frequencies / factor * ramp + frequencies * (1 - ramp), attention


@pytest.mark.parametrize("make_rope", [mlx_vlm_rope, mlx_lm_rope], ids=["mlx-vlm", "mlx-lm"])
@pytest.mark.parametrize(
    "settings",
    [
        {"factor": 4.0, "original_max_position_embeddings": 512},
        {"factor": 4.0},
        {"factor": 4.0, "attention_factor": 1.5},
        {"factor": 4.0, "attention_factor": 0.5, "mscale": 2.0, "mscale_all_dim": 1.0},
        {"factor": 4.0, "mscale": 2.0},
        {"factor": 4.0, "mscale": 2.0, "mscale_all_dim": 0.5},
        {"factor": 4.0, "beta_fast": 16, "beta_slow": 2},
        {"factor": 4.0, "beta_fast": None, "beta_slow": None, "attention_factor": None},
        {"factor": 1.0},
    ],
    ids=str,
)
def test_yarn_is_what_transformers_computes(make_rope, settings):
    completed = complete_rope({"rope_type": "yarn", **settings}, 2048)
    assert complete_rope(completed, 4096) == completed
    rope = make_rope(DIMS, BASE, False, completed, max_position_embeddings=2048)
    frequencies, attention = yarn_of_transformers(settings, 2048)
    # MLX divides positions by these, transformers multiplies by their inverse.
    np.testing.assert_allclose(1 / np.array(rope._freqs), frequencies, rtol=1e-5)
    x = mx.random.normal((1, 1, 1, DIMS))
    scaled = mx.linalg.norm(rope(x)) / mx.linalg.norm(x)
    assert scaled.item() == pytest.approx(attention, rel=1e-5)


@pytest.mark.parametrize("make_rope", [mlx_vlm_rope, mlx_lm_rope], ids=["mlx-vlm", "mlx-lm"])
@pytest.mark.parametrize(
    "settings",
    [{"rope_type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2}, LLAMA3],
    ids=["linear", "old name", "llama3"],
)
def test_other_kinds_reach_both_libraries(make_rope, settings):
    completed = complete_rope(settings, 4096)
    assert completed.items() >= {k: v for k, v in settings.items() if k != "type"}.items()
    assert completed["rope_type"] in ("linear", "llama3")
    make_rope(DIMS, BASE, False, completed, max_position_embeddings=4096)


def test_the_newer_name_of_the_kind_counts():
    """transformers prefers ``rope_type``, both libraries for MLX prefer ``type``."""
    settings = {"rope_type": "linear", "type": "yarn", "factor": 2.0}
    assert complete_rope(settings, 9) == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("settings", [{}, {"rope_type": "default"}, {"rope_theta": 1e6}])
def test_plain_embeddings_are_not_scaled(settings):
    assert complete_rope(settings, None) is None


def test_llama3_and_yarn_take_their_original_length_from_the_model():
    for settings in ({**LLAMA3}, {"rope_type": "yarn", "factor": 2.0}):
        settings.pop("original_max_position_embeddings", None)
        assert complete_rope(settings, 777)["original_max_position_embeddings"] == 777
        with pytest.raises(ValueError, match="needs original_max_position_embeddings, or text"):
            complete_rope(settings, None)


def test_a_default_length_of_ours_does_not_reach_the_rope():
    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5e5}
    with pytest.raises(ValueError, match=r"text_config\.max_position_embeddings"):
        TextConfig.from_dict({"rope_parameters": yarn})
    config = TextConfig.from_dict({"rope_parameters": yarn, "max_position_embeddings": 512})
    assert config.rope_theta == 5e5
    assert config.rope_scaling["original_max_position_embeddings"] == 512
    again = TextConfig.from_dict({k: v for k, v in vars(config).items() if k != "layer_types"})
    assert again == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type 'dynamic' is not supported"),
        ({"rope_type": "longrope"}, "rope_type 'longrope' is not supported"),
        (
            {"rope_type": ["linear"]},
            "not supported; supported are default, linear, llama3, yarn",
        ),
        ({"rope_type": "linear"}, "of rope_type linear lacks factor"),
        ({"rope_type": "linear", "factor": 0}, "rope_parameters.factor is 0; allowed"),
        ({"rope_type": "linear", "factor": math.nan}, "rope_parameters.factor is nan"),
        ({"rope_type": "linear", "factor": "2"}, "rope_parameters.factor is '2'"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 1}, "beta_fast is not supported for"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": False}, "truncate false"),
        ({"rope_type": "yarn", "factor": 1.0, "attention_factor": 2.0}, "needs a factor above 1"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention is not supported"),
        ({k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}, "lacks low_freq_factor"),
    ],
)
def test_settings_that_mlx_does_not_compute_are_refused(settings, message):
    with pytest.raises(ValueError, match=r"^config\.json: text_config\.rope_parameters") as error:
        complete_rope(settings, 2048)
    assert message in str(error.value)
