"""Weight names, layouts, and dropped tensors."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin import Model
from mlx_vlm.models.moxin.towers import TOWER_NAMES
from mlx_vlm.models.moxin.weights import _some, convert_weights, is_unused, moxin_name
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


def test_only_layers_after_the_features_are_dropped(source, bf16_model):
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


def test_sanitize_accepts_a_part_of_the_weights(source, bf16_model):
    names = ["projector.fc1.bias", "vision_backbone.featurizer.patch_embed.proj.weight"]
    once = bf16_model.sanitize({name: source[name] for name in names})
    assert len(once) == 2
    twice = bf16_model.sanitize(once)
    assert all(twice[name] is value for name, value in once.items())


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
        bf16_model.load_weights(list(bf16_model.sanitize(weights).items()))
    message = str(error.value)
    assert "1 tensors missing (language_model.lm_head.weight)" in message
    assert "1 tensors unknown (language_model.model.layers.0.self_attn.q_proj.bias)" in message
    assert "multi_modal_projector.fc3.bias has shape (7,), expected (128,)" in message


def test_an_unknown_tensor_in_a_tower_is_not_taken_for_an_unused_one(source, bf16_model):
    weights = {**source, "vision_backbone.featurizer.head.weight": mx.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"unknown \(vision_tower\.dino\.head\.weight\)"):
        bf16_model.load_weights(list(bf16_model.sanitize(weights).items()))


def test_scales_of_a_layer_that_does_not_exist_are_unknown(source, bf16_model):
    weights = {**source, "language_model.model.extra.scales": mx.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"language_model\.model\.extra\.scales"):
        bf16_model.load_weights(list(bf16_model.sanitize(weights).items()))


def test_a_checkpoint_without_a_part_of_the_model_is_refused(source, bf16_model):
    model = Model(bf16_model.config)
    weights = {n: v for n, v in model.sanitize(source).items() if "vision_tower" not in n}
    # mlx-vlm does this to a part that neither the files nor their index name.
    model.vision_tower = None
    with pytest.raises(ValueError, match="tensors missing") as error:
        model.load_weights(list(weights.items()))
    assert len(str(error.value)) < 500


def test_the_message_is_short_whatever_is_wrong(bf16_model):
    model = Model(bf16_model.config)
    names = [name for name, _ in tree_flatten(model.parameters())]
    weights = [(name, mx.zeros((7, 7, 7))) for name in names[::2]]
    weights += [(f"{name}.{'x' * 20}", mx.zeros((1,))) for name in names]
    with pytest.raises(ValueError, match="does not fit its config") as error:
        model.load_weights(weights)
    assert len(str(error.value)) < 1000


def test_weights_of_another_model_are_loaded_where_not_all_are_needed(bf16_model):
    model = Model(bf16_model.config)
    value = mx.full((128,), 2.0)
    model.load_weights([("multi_modal_projector.fc3.bias", value), ("x", value)], strict=False)
    assert mx.array_equal(model.multi_modal_projector.fc3.bias, value)


@pytest.mark.parametrize(("count", "shown"), [(1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2 and 1 more")])
def test_three_names_are_shown_and_the_others_counted(count, shown):
    assert _some([str(i) for i in reversed(range(count))]) == shown
