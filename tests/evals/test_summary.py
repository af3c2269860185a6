"""Numbers of a task from its answers, computed by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlm_moxin.evals.example import Answer
from mlx_vlm_moxin.evals.scores import summary
from mlx_vlm_moxin.evals.scores.ranking import average_precision, f1, roc_auc
from mlx_vlm_moxin.evals.scores.text import vizwiz_form


def answer(score=0.0, group="", prediction="", right="", probabilities=None) -> Answer:
    return Answer("m", "w", "t", "1", group, "?", right, prediction, score, probabilities)


def test_ranking_equals_values_computed_by_hand():
    # Ranked: + - + -. Of the pairs, (0.9, 0.8), (0.9, 0.2), (0.4, 0.2) are right: 3 / 4.
    labels, values = [True, False, True, False], [0.9, 0.8, 0.4, 0.2]
    assert roc_auc(labels, values) == pytest.approx(3 / 4)
    # Precision 1 at the first half of the positives, 2/3 at the second.
    assert average_precision(labels, values) == pytest.approx((1 + 2 / 3) / 2)


def test_ties_count_half():
    assert roc_auc([True, False], [0.5, 0.5]) == pytest.approx(0.5)
    assert average_precision([True, False], [0.5, 0.5]) == pytest.approx(0.5)


def test_ranking_needs_both_kinds():
    assert roc_auc([True, True], [0.1, 0.2]) is None
    assert average_precision([False], [0.1]) is None
    assert f1([False], [False]) == 0


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=2, max_size=30))
def test_reversing_the_order_reverses_the_area(pairs):
    labels, values = zip(*pairs)
    area = roc_auc(labels, values)
    if area is not None:
        assert area + roc_auc(labels, [-value for value in values]) == pytest.approx(1)
        assert 0 <= average_precision(labels, values) <= 1


def test_f1_equals_values_computed_by_hand():
    # Two of three found, one of three found ones wrong: precision and recall 2/3.
    labels, found = [True, True, True, False], [True, True, False, True]
    assert f1(labels, found) == pytest.approx(2 / 3)


def test_pope_is_the_plain_mean_of_its_parts():
    groups = ("adversarial", "popular", "random")
    answers = [answer(1, "adversarial", "Yes", "Yes", [0.9, 0.1])] * 3
    answers += [answer(0, "adversarial", "Yes", "No", [0.7, 0.3])]
    answers += [answer(1, "popular", "No", "No", [0.2, 0.8])] * 2
    answers += [answer(0, "random", "No", "Yes", [0.4, 0.6])]
    numbers = summary.pope(*groups)(answers)
    assert next(iter(numbers)) == "accuracy"
    # Pooled it would be 5/7.
    assert numbers["accuracy"] == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert numbers["adversarial"] == 3 / 4
    assert numbers["yes ratio"] == pytest.approx(4 / 7)
    # Positives 0.9 x 3 and 0.4; negatives 0.7 and 0.2 x 2: 9 + 2 of 12 pairs.
    assert numbers["ROC-AUC"] == pytest.approx(11 / 12)


def test_parts_of_pope_without_answers_do_not_count():
    numbers = summary.pope("popular", "random")([answer(1, "popular", "yes", "Yes")])
    assert (numbers["accuracy"], numbers["random"]) == (1, None)
    assert "ROC-AUC" not in numbers


def test_pooled_groups_have_one_accuracy_and_one_each():
    answers = [answer(1, "simple")] * 3 + [answer(0, "complex")]
    numbers = summary.pooled("simple", "complex")(answers)
    assert numbers == {"accuracy": 3 / 4, "simple": 1, "complex": 0}


def test_boxes_that_are_none_are_counted():
    answers = [answer(1, "a", "[0.1, 0.1, 0.5, 0.5]"), answer(0, "b", "left"), answer(0, "b", "[]")]
    numbers = summary.boxes("a", "b")(answers)
    assert numbers == {"accuracy": 1 / 3, "a": 1, "b": 0, "no box": 2 / 3}


def test_vizwiz_separates_what_can_be_answered():
    groups = ("unanswerable", "answerable")
    answers = [answer(0.9, "answerable", "red"), answer(0, "answerable", "Unanswerable.")]
    answers += [answer(1, "unanswerable", "unanswerable"), answer(0.3, "unanswerable", "blue")]
    numbers = summary.vizwiz(vizwiz_form, groups)(answers)
    assert numbers["accuracy"] == pytest.approx(0.55)
    assert numbers["answerable"] == pytest.approx(0.45)
    assert numbers["unanswerable"] == pytest.approx(0.65)
    # Two are classified as unanswerable, one of them rightly; two are unanswerable.
    assert numbers["unanswerable, F1"] == pytest.approx(1 / 2)
    assert numbers["unanswerable, average precision"] == pytest.approx(1 / 2)


def test_vizwiz_from_the_hub_does_not_know_what_can_be_answered():
    numbers = summary.vizwiz(vizwiz_form, ("unanswerable", "answerable"))([answer(0.5)])
    assert numbers == {"accuracy": 0.5}
