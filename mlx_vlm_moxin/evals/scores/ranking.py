"""How well probabilities rank the correct answers: areas under two curves, including ties."""

from collections.abc import Sequence

import numpy as np


def _thresholds(labels: Sequence[bool], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives at each distinct threshold, highest first."""
    order = np.argsort(-np.asarray(values, dtype=np.float64), kind="stable")
    ranked, hits = np.asarray(values)[order], np.asarray(labels, dtype=bool)[order]
    last_of_tie = np.append(np.diff(ranked) != 0, True)
    return np.cumsum(hits)[last_of_tie], np.cumsum(~hits)[last_of_tie]


def roc_auc(labels: Sequence[bool], values: Sequence[float]) -> float | None:
    """Probability that a positive example ranks above a negative one; a tie counts half.

    None if all labels are equal.
    """
    if len({bool(label) for label in labels}) < 2:
        return None
    true, false = _thresholds(labels, values)
    true, false = np.insert(true, 0, 0), np.insert(false, 0, 0)
    area = np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2)
    return float(area / (true[-1] * false[-1]))


def average_precision(labels: Sequence[bool], values: Sequence[float]) -> float | None:
    """Precision at each threshold, weighted by the recall gained there (not interpolated).

    None if no label is positive.
    """
    if not any(labels):
        return None
    true, false = _thresholds(labels, values)
    gained = np.diff(true, prepend=0) / true[-1]
    return float(np.sum(gained * true / (true + false)))


def f1(labels: Sequence[bool], predicted: Sequence[bool]) -> float:
    """Harmonic mean of precision and recall; 0 if nothing is both positive and predicted."""
    pairs = list(zip(labels, predicted))
    both = sum(bool(label and guess) for label, guess in pairs)
    either = sum(map(bool, labels)) + sum(map(bool, predicted))
    return 2 * both / either if either else 0.0
