"""Weight names, layouts and what is dropped."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin.towers import TOWER_NAMES
from mlx_vlm.models.moxin.weights import convert_weights, is_unused, moxin_name
from support import HF_CHECKPOINT


@pytest.fixture(scope="module")
def source():
    weights = {}
    for file in sorted(HF_CHECKPOINT.glob("*.safetensors")):
        weights.update(mx.load(str(file)))
    return weights


def test_every_parameter_comes_from_exactly_one_source_tensor(source, bf16_model):
    config = bf16_model.config.vision_config
    used = [
        moxin_name(name, TOWER_NAMES)
        for name in source
        if not is_unused(moxin_name(name, TOWER_NAMES), config)
    ]
    parameters = [name for name, _ in tree_flatten(bf16_model.parameters())]
    assert sorted(used) == sorted(parameters)


def test_only_what_lies_behind_the_features_is_dropped(source, bf16_model):
    config = bf16_model.config.vision_config
    dropped = {
        name.removeprefix("vision_backbone.")
        for name in source
        if is_unused(moxin_name(name, TOWER_NAMES), config)
    }
    parts = {".".join(name.split(".")[:3]) for name in dropped}
    assert {part for part in parts if "blocks" in part} == {
        "featurizer.blocks.3",
        "fused_featurizer.blocks.4",
    }
    assert {part.split(".")[1] for part in parts} == {"blocks", "norm", "attn_pool"}


def test_converting_twice_changes_nothing(source, bf16_model):
    config = bf16_model.config.vision_config
    once = convert_weights(source, config)
    twice = convert_weights(once, config)
    assert once.keys() == twice.keys()
    assert all(twice[name] is value for name, value in once.items())


def test_sanitize_accepts_source_and_converted_weights(source, bf16_model):
    once = bf16_model.sanitize(source)
    assert bf16_model.sanitize(once).keys() == once.keys()


def test_both_names_of_the_layer_scale_vector_are_known():
    prefix = "vision_backbone.featurizer.blocks.0.ls1."
    assert moxin_name(prefix + "scale_factor", TOWER_NAMES) == moxin_name(
        prefix + "gamma", TOWER_NAMES
    )


def test_missing_unknown_and_misshapen_tensors_are_all_named(source, bf16_model):
    weights = dict(source)
    del weights["language_model.lm_head.weight"]
    weights["language_model.model.layers.0.self_attn.q_proj.bias"] = mx.zeros((128,))
    weights["projector.fc3.bias"] = mx.zeros((7,))
    with pytest.raises(ValueError, match="does not fit its config") as error:
        bf16_model.sanitize(weights)
    message = str(error.value)
    assert "1 tensors missing (language_model.lm_head.weight)" in message
    assert "1 tensors unknown (language_model.model.layers.0.self_attn.q_proj.bias)" in message
    assert "multi_modal_projector.fc3.bias has shape (7,), expected (128,)" in message


def test_an_unknown_tensor_in_a_tower_is_not_taken_for_an_unused_one(source, bf16_model):
    weights = {**source, "vision_backbone.featurizer.head.weight": mx.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"unknown \(vision_tower\.dino\.head\.weight\)"):
        bf16_model.sanitize(weights)


def test_scales_of_a_layer_that_does_not_exist_are_unknown(source, bf16_model):
    weights = {**source, "language_model.model.extra.scales": mx.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"language_model\.model\.extra\.scales"):
        bf16_model.sanitize(weights)
