"""The measures, on distributions whose values were computed by hand."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlx_vlm_moxin.conversion.verify.divergence import Divergence, compare, concatenate, log_softmax


def log_probs(*rows: list[float]) -> np.ndarray:
    """Log-probabilities of given probabilities."""
    return np.log(np.array(rows, dtype=np.float32))


def test_log_softmax_is_computed_in_float32():
    values = log_softmax(mx.array([[1.0, 2.0, 3.0]], dtype=mx.bfloat16))
    total = math.log(math.exp(1) + math.exp(2) + math.exp(3))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[0], [1 - total, 2 - total, 3 - total], rtol=1e-6)


def test_log_softmax_of_large_logits_does_not_overflow():
    np.testing.assert_allclose(log_softmax(mx.array([[1e4, 1e4]]))[0], math.log(0.5), rtol=1e-6)


def test_kl_goes_from_source_to_result():
    source, result = log_probs([0.75, 0.25]), log_probs([0.5, 0.5])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert compare(source, result, [0]).kl_mean == pytest.approx(expected, rel=1e-6)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2)
    assert compare(result, source, [0]).kl_mean == pytest.approx(reverse, rel=1e-6)


def test_mean_and_maximum_are_over_positions():
    source = log_probs([0.5, 0.5], [0.5, 0.5])
    result = log_probs([0.5, 0.5], [0.25, 0.75])
    worst = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    divergence = compare(source, result, [0, 0])
    assert divergence.kl_max == pytest.approx(worst, rel=1e-6)
    assert divergence.kl_mean == pytest.approx(worst / 2, rel=1e-6)
    assert divergence.positions == 2


def test_top1_agreement_is_the_share_of_equal_first_choices():
    source = log_probs([0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.1, 0.9])
    result = log_probs([0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.4, 0.6])
    assert compare(source, result, [0, 0, 0, 1]).top1_agreement == 0.75


def test_perplexity_ratio_is_about_the_answers_tokens():
    """Source: (1/2 * 1/8)^(-1/2) = 4; result: (1/4 * 1/64)^(-1/2) = 16."""
    source = log_probs([1 / 2, 1 / 2], [7 / 8, 1 / 8])
    result = log_probs([1 / 4, 3 / 4], [63 / 64, 1 / 64])
    assert compare(source, result, [0, 1]).perplexity_ratio == pytest.approx(16 / 4, rel=1e-6)


def test_positions_of_several_answers_count_alike():
    one = compare(log_probs([0.5, 0.5]), log_probs([0.25, 0.75]), [0])
    three = compare(log_probs(*[[0.5, 0.5]] * 3), log_probs(*[[0.5, 0.5]] * 3), [0, 0, 0])
    total = concatenate([one, three])
    assert total.positions == 4
    assert total.kl_mean == pytest.approx(one.kl_mean / 4)
    assert total.perplexity_ratio == pytest.approx(2**0.25)


def test_a_result_that_is_not_finite_is_infinitely_far_and_agrees_nowhere():
    source = log_probs([0.9, 0.1], [0.9, 0.1])
    result = np.array([[np.nan, np.nan], [-0.1, -2.3]], dtype=np.float32)
    divergence = compare(source, result, [0, 0])
    assert divergence.kl_max == math.inf
    assert divergence.perplexity_ratio == math.inf
    assert divergence.agrees.tolist() == [False, True]
    assert divergence.is_finite.tolist() == [False, True]


def test_rounding_does_not_make_kl_negative():
    source = log_probs([0.3, 0.7])
    assert compare(source, np.nextafter(source, np.float32(1)), [0]).kl_mean == 0


def test_different_vocabularies_are_refused():
    with pytest.raises(ValueError, match="3 tokens where the source predicts 2"):
        compare(np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32), [0])


LOGITS = arrays(np.float32, (3, 7), elements=st.floats(-50, 50, width=32))


@given(LOGITS, LOGITS, st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_kl_is_never_negative_and_zero_only_with_itself(source, result, tokens):
    source, result = log_softmax(mx.array(source)), log_softmax(mx.array(result))
    divergence = compare(source, result, tokens)
    assert (divergence.kl >= 0).all()
    assert divergence.perplexity_ratio > 0
    same = compare(source, source, tokens)
    assert isinstance(same, Divergence)
    assert (same.kl_max, same.top1_agreement, same.perplexity_ratio) == (0, 1, 1)
