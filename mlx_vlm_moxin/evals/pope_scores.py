"""POPE's numbers: accuracy, precision, recall, F1 and yes-ratio, by category.

Paper: https://arxiv.org/abs/2305.10355. Reference: ``evaluate.py`` of AoiDragon/POPE.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.table import Table

from mlx_vlm_moxin.checkpoints.messages import print_table

CATEGORIES = ("random", "popular", "adversarial")
LABELS = ("yes", "no")
_NO_WORDS = frozenset(("no", "not"))


def _first_sentence_words(answer: str) -> set[str]:
    return set(re.findall(r"\w+", answer.strip().partition(".")[0].lower()))


def predicted_label(answer: str) -> str:
    """``"yes"`` or ``"no"`` by POPE's rule: an answer is "yes" unless it denies.

    An answer denies if its first sentence contains the word "no" or "not".
    """
    return "no" if _first_sentence_words(answer) & _NO_WORDS else "yes"


def is_clear(answer: str) -> bool:
    """Whether the answer contains a yes or a no; POPE's rule counts all others as yes."""
    return bool(_first_sentence_words(answer) & {"yes", *_NO_WORDS})


@dataclass
class Scores:
    """Counts of one category ("yes" is the positive class) and the scores derived from them.

    A quotient whose denominator is 0 is 0.0.
    """

    true_positives: int = 0
    false_positives: int = 0
    true_negatives: int = 0
    false_negatives: int = 0
    unclear: int = 0

    def add(self, prediction: str, label: str) -> None:
        """Count one answer (free text) to a question with the correct answer ``label``."""
        predicted = predicted_label(prediction)
        if predicted == "yes":
            self.true_positives += label == "yes"
            self.false_positives += label == "no"
        else:
            self.true_negatives += label == "no"
            self.false_negatives += label == "yes"
        self.unclear += not is_clear(prediction)

    @property
    def questions(self) -> int:
        """Number of answered questions."""
        return (
            self.true_positives + self.false_positives + self.true_negatives + self.false_negatives
        )

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return _ratio(self.true_positives + self.true_negatives, self.questions)

    @property
    def precision(self) -> float:
        """Share of "yes" answers that are right, 0 to 1."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of "yes" questions that were answered with "yes", 0 to 1."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """Share of "yes" among the answers; it is correct for half of the questions."""
        return _ratio(self.true_positives + self.false_positives, self.questions)

    def to_dict(self) -> dict[str, float]:
        """All numbers, ready for ``json``."""
        names = ("questions", "accuracy", "precision", "recall", "f1", "yes_ratio", "unclear")
        return {name: getattr(self, name) for name in names}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def score(rows: Iterable[Mapping[str, str]]) -> dict[str, Scores]:
    """Scores by category, in POPE's order, and ``"overall"`` for all rows.

    Args:
        rows: each with ``prediction`` (the answer), ``answer`` (``"yes"`` or ``"no"``)
            and ``category``.

    Raises:
        ValueError: if there is no row, a column is missing or an answer is not a label.
    """
    found: dict[str, Scores] = {}
    overall = Scores()
    for number, row in enumerate(rows, start=1):
        missing = [name for name in ("prediction", "answer", "category") if row.get(name) is None]
        if missing or row["answer"] not in LABELS:
            raise ValueError(
                f"Row {number} of the predictions needs a prediction, a category and an answer "
                f"that is yes or no, got {dict(row)}"
            )
        for scores in (found.setdefault(row["category"], Scores()), overall):
            scores.add(row["prediction"], row["answer"])
    if not overall.questions:
        raise ValueError("There are no predictions to score")
    order = sorted(found, key=lambda name: (*CATEGORIES, name).index(name))
    return {**{name: found[name] for name in order}, "overall": overall}


def print_scores(scores: Mapping[str, Scores]) -> None:
    """Print a table with one row per category."""
    table = Table(box=None, pad_edge=False)
    table.add_column("category")
    for name in ("questions", "accuracy", "precision", "recall", "F1", "yes", "unclear"):
        table.add_column(name, justify="right")
    for name, s in scores.items():
        shares = (s.accuracy, s.precision, s.recall, s.f1, s.yes_ratio)
        cells = [f"{share:.2%}" for share in shares]
        table.add_row(name, str(s.questions), *cells, str(s.unclear))
    print_table(table)
