"""The cost of quantisation in actions, measured and on the model card."""

import json
import shutil

import numpy as np
import pytest
from source_checkpoints import with_weights
from support import IMAGES

from mlx_vlm_moxin import load
from mlx_vlm_moxin.actions.policy import Prediction
from mlx_vlm_moxin.conversion import command_line
from mlx_vlm_moxin.conversion.verify.actions import (
    INSTRUCTIONS,
    compare_actions,
    predict_actions,
)
from mlx_vlm_moxin.conversion.verify.compare import verify

pytestmark = pytest.mark.usefixtures("short_answers")


def prediction(action, ids=None) -> Prediction:
    action = np.array(action, float)
    return Prediction(action, action, None if ids is None else np.array(ids))


def test_differences_are_of_each_value_over_all_actions():
    source = [prediction([0.0, 1.0], [5, 6]), prediction([2.0, 3.0], [7, 8])]
    result = [prediction([0.5, 1.0], [5, 6]), prediction([1.0, 3.25], [9, 8])]
    cost = compare_actions(source, result)
    np.testing.assert_allclose(cost.mean, [0.75, 0.125])
    np.testing.assert_allclose(cost.largest, [1.0, 0.25])
    assert (cost.count, cost.ids_equal) == (2, 0.75)


def test_chunks_of_a_head_have_no_ids():
    cost = compare_actions([prediction([[0, 1], [2, 3]])], [prediction([[0, 2], [2, 3]])])
    np.testing.assert_allclose(cost.largest, [0, 1])
    assert cost.ids_equal is None
    assert "regression head" in dict(cost.rows())["Action ids equal"]


@pytest.mark.parametrize("result", [[], [prediction([[0.0, 1.0]])]])
def test_actions_of_different_forms_are_not_compared(result):
    assert compare_actions([prediction([0.0, 1.0])], result) is None


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A directory with one picture."""
    directory = tmp_path_factory.mktemp("pictures")
    shutil.copy(IMAGES / "photo.png", directory)
    return directory


@pytest.mark.slow
def test_a_model_compared_with_itself_costs_nothing(action_checkpoint):
    cost = verify(action_checkpoint("openvla"), action_checkpoint("openvla"), quiet=True).actions
    assert cost.ids_equal == 1
    assert cost.largest.tolist() == [0] * 7


def test_damaged_weights_change_actions(action_checkpoint, pictures, tmp_path):
    def damage(weights):
        name = "language_model.model.layers.0.mlp.down_proj.weight"
        weights[name] = weights[name] * 0

    damaged = with_weights(tmp_path / "damaged", damage, action_checkpoint("openvla"))
    cost = verify(action_checkpoint("openvla"), damaged, pictures, quiet=True).actions
    assert cost.ids_equal < 1
    assert cost.largest.max() > 0


@pytest.mark.slow
def test_the_card_of_a_chunk_model_says_what_its_actions_cost(
    action_checkpoint, pictures, tmp_path
):
    target = tmp_path / "oft"
    arguments = ["--model", str(action_checkpoint("oft")), "--mlx-path", str(target)]
    arguments += ["--action-preset", "libero", "--dtype", "float16", "--verify", "--quiet"]
    arguments += ["--verify-images", str(pictures)]
    assert command_line.main(arguments) == 0
    assert "Action difference, largest of each value" in (target / "README.md").read_text()
    verification = json.loads((target / "verification.json").read_text())
    assert len(verification["actions"]["difference_max"]) == 7
    assert verification["actions"]["ids_equal"] is None


def test_statistics_need_no_mean_to_give_the_state(action_checkpoint):
    model, processor = load(action_checkpoint("oft"), actions="libero")
    scales = {
        part: {name: values[name] for name in ("q01", "q99")}
        for part, values in model.config.norm_stats["libero_spatial_no_noops"].items()
        if part in ("action", "proprio")
    }
    model.config.norm_stats = {"robot": scales}
    predictions = predict_actions(model, processor, [IMAGES / "photo.png"])
    assert [p.action.shape for p in predictions] == [(8, 7)] * len(INSTRUCTIONS)


def test_models_without_actions_have_none(fp32_checkpoint, pictures):
    verification = verify(fp32_checkpoint, fp32_checkpoint, pictures, quiet=True)
    assert verification.actions is None
    assert "actions" not in verification.to_dict()
    assert "Action" not in verification.markdown()
