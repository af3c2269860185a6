"""Computes the numbers of a task from the scores of its examples.

Each function receives all answers of a task and returns fractions from 0 to 1 by name. The number
that the published table shows comes first. A number that cannot be computed is None.
"""

from collections.abc import Callable, Sequence

from mlx_vlm_moxin.evals.example import Answer
from mlx_vlm_moxin.evals.pope_scores import predicted_label
from mlx_vlm_moxin.evals.scores.boxes import parse_box
from mlx_vlm_moxin.evals.scores.ranking import average_precision, f1, roc_auc

Numbers = dict[str, float | None]
Summary = Callable[[Sequence[Answer]], Numbers]


def mean_score(answers: Sequence[Answer]) -> float | None:
    """Mean of the scores; None without answers."""
    return sum(answer.score for answer in answers) / len(answers) if answers else None


def _by_group(answers: Sequence[Answer], groups: Sequence[str]) -> Numbers:
    return {name: mean_score([a for a in answers if a.group == name]) for name in groups}


def _positive_ranking(answers: Sequence[Answer], positive: str) -> Numbers:
    """How well the probability of the first string ranks the examples labelled ``positive``."""
    labels = [answer.answer == positive for answer in answers]
    values = [answer.probabilities[0] for answer in answers if answer.probabilities]
    if len(values) < len(labels):
        return {}
    return {
        "ROC-AUC": roc_auc(labels, values),
        "average precision": average_precision(labels, values),
    }


def pooled(*groups: str) -> Summary:
    """Accuracy over all examples, then of each group."""
    return lambda answers: {"accuracy": mean_score(answers), **_by_group(answers, groups)}


def true_or_false(answers: Sequence[Answer]) -> Numbers:
    """VSR: accuracy, and how well the probability of "True" ranks the captions."""
    return {"accuracy": mean_score(answers), **_positive_ranking(answers, "True")}


def boxes(*groups: str) -> Summary:
    """Accuracy overall and of each group, and the share of answers that are not a box."""

    def summarise(answers: Sequence[Answer]) -> Numbers:
        wrong = [parse_box(answer.prediction) is None for answer in answers]
        share = sum(wrong) / len(wrong) if wrong else None
        return {"accuracy": mean_score(answers), **_by_group(answers, groups), "no box": share}

    return summarise


def pope(*groups: str) -> Summary:
    """Unweighted mean of the groups' accuracies, each of these, the share of yes, and ranking."""

    def summarise(answers: Sequence[Answer]) -> Numbers:
        numbers = _by_group(answers, groups)
        known = [value for value in numbers.values() if value is not None]
        yes = [predicted_label(answer.prediction) == "yes" for answer in answers]
        return {
            "accuracy": sum(known) / len(known) if known else None,
            **numbers,
            "yes ratio": sum(yes) / len(yes) if yes else None,
            **_positive_ranking(answers, "Yes"),
        }

    return summarise


def vizwiz(form: Callable[[str], str], groups: Sequence[str]) -> Summary:
    """Accuracy overall and of each group, and how well unanswerable questions are detected.

    Args:
        form: normalises a prediction for comparison.
        groups: names of the groups; the unanswerable one first.
    """
    unanswerable, answerable = groups

    def summarise(answers: Sequence[Answer]) -> Numbers:
        numbers = {"accuracy": mean_score(answers)}
        if not all(answer.group in groups for answer in answers):
            return numbers
        labels = [answer.group == unanswerable for answer in answers]
        found = [form(answer.prediction) == "unanswerable" for answer in answers]
        return {
            **numbers,
            **_by_group(answers, (answerable, unanswerable)),
            "unanswerable, average precision": average_precision(labels, [*map(float, found)]),
            "unanswerable, F1": f1(labels, found),
        }

    return summarise
