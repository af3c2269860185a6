"""Scaling of actions and states, and the choice of the data set whose statistics are used."""

import numpy as np
import pytest

from mlx_vlm_moxin.actions.statistics import choose_data_set, scale_of

ACTION = {
    "q01": [-1.0, 0.0, 0.0],
    "q99": [3.0, 0.5, 1.0],
    "min": [-2.0, -1.0, 0.0],
    "max": [4.0, 1.0, 1.0],
    "mask": [True, True, False],
}
STATISTICS = {
    "bridge_orig": {"action": ACTION, "proprio": {k: v for k, v in ACTION.items() if k != "mask"}},
    "libero_spatial_no_noops": {"action": ACTION},
}


def test_actions_are_scaled_to_the_quantiles_and_masked_dimensions_left_alone():
    scale = scale_of(STATISTICS, "bridge_orig")
    values = scale.unnormalize(np.array([[-1.0, 1.0, -1.0], [0.0, 0.0, 0.25], [1.0, -1.0, 1.0]]))
    np.testing.assert_allclose(values, [[-1, 0.5, -1], [1, 0.25, 0.25], [3, 0, 1]], atol=1e-12)
    assert values.dtype == np.float64


def test_bounds_are_the_extremes():
    scale = scale_of(STATISTICS, "bridge_orig", normalization="bounds")
    np.testing.assert_allclose(scale.unnormalize(np.array([1.0, -1.0, 0.0])), [4.0, -1.0, 0.0])


def test_states_are_normalized_and_cut_off():
    scale = scale_of(STATISTICS, "bridge_orig", "proprio", epsilon=1e-8)
    assert scale.mask.all()
    np.testing.assert_allclose(
        scale.normalize(np.array([1.0, 9.0, -9.0])), [0.0, 1.0, -1.0], atol=1e-7
    )


def test_normalizing_undoes_unnormalizing():
    scale = scale_of(STATISTICS, "bridge_orig")
    values = np.array([0.3, -0.7, 0.9])
    np.testing.assert_allclose(scale.normalize(scale.unnormalize(values)), values, atol=1e-12)


def test_a_dimension_that_never_changes_normalizes_to_its_lower_end():
    constant = {"still": {"action": {"q01": [2.0], "q99": [2.0]}}}
    assert scale_of(constant, "still").normalize(np.array([2.0])) == -1


def test_one_data_set_needs_no_key():
    assert choose_data_set({"only": {}}, None) == "only"


def test_libero_keys_are_found_without_their_ending():
    assert choose_data_set(STATISTICS, "libero_spatial") == "libero_spatial_no_noops"


@pytest.mark.parametrize("key", [None, "nonsense", "bridge"])
def test_a_missing_or_unknown_key_lists_the_keys(key):
    with pytest.raises(ValueError, match="bridge_orig, libero_spatial_no_noops"):
        choose_data_set(STATISTICS, key)


def test_the_list_of_keys_is_bounded():
    many = {f"data_set_with_a_long_name_{index}": {} for index in range(200)}
    with pytest.raises(ValueError, match="188 more") as error:
        choose_data_set(many, "nonsense")
    assert len(str(error.value)) <= 500


def test_a_checkpoint_without_statistics_says_what_to_do():
    with pytest.raises(ValueError, match=r"dataset_statistics\.json"):
        choose_data_set(None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q99": [1.0]}, "shapes"),
        ({"q01": "low"}, "no lists of numbers"),
        ({"q01": [10**400, 0.0, 0.0]}, "no lists of numbers"),
        ({"q01": [0.0, float("nan"), 0.0]}, "not finite"),
        ({"mask": [True]}, "shapes"),
        ({"q01": [], "q99": [], "mask": []}, "at least one"),
    ],
)
def test_malformed_statistics_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        scale_of({"set": {"action": {**ACTION, **change}}}, "set")


def test_missing_statistics_are_named():
    with pytest.raises(ValueError, match="libero_spatial_no_noops' have no proprio"):
        scale_of(STATISTICS, "libero_spatial_no_noops", "proprio")
    with pytest.raises(ValueError, match="'min' is missing"):
        scale_of({"set": {"action": {"q01": [0], "q99": [1]}}}, "set", normalization="bounds")
