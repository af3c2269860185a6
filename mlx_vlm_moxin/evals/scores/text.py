"""Normalises short answers in words and compares them with people's answers.

GQA: ``eval.py`` of the data set as TRI-ML/vlm-evaluation runs it. VQAv2:
https://github.com/GT-Vision-Lab/VQA. VizWiz: ``vqaEval.py`` of the VizWiz API, which looks
like VQAv2's and differs in its contractions. TextVQA: the M4C evaluator of mmf.
"""

import re
import string
from collections.abc import Mapping, Sequence

from mlx_vlm_moxin.evals.scores.contractions import CONTRACTIONS, VIZWIZ_CONTRACTIONS

_NUMBERS = dict(zip(("zero", "one", "two", "three", "four", "five"), "012345"))
_NUMBERS |= dict(zip(("six", "seven", "eight", "nine"), "6789")) | {"none": "0", "ten": "10"}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The original passes the flag re.UNICODE (32) where re.sub expects the maximum number of
# replacements.
_MAX_PERIODS = 32


def gqa_form(text: str) -> str:
    """Lower case without punctuation; whitespace is unchanged."""
    return text.translate(str.maketrans("", "", string.punctuation)).lower()


def without_punctuation(text: str) -> str:
    """Remove punctuation as the VQA evaluation does.

    A mark is removed if any occurrence of it is next to a space, otherwise replaced by a space. A
    comma between digits anywhere in the text causes all marks to be removed. The first 32 periods
    that no digit follows are removed.
    """
    result = text
    for mark in _PUNCTUATION:
        is_removed = f"{mark} " in text or f" {mark}" in text or _COMMA_IN_NUMBER.search(text)
        result = result.replace(mark, "" if is_removed else " ")
    return _PERIOD.sub("", result, count=_MAX_PERIODS)


def _words(text: str, contractions: Mapping[str, str]) -> str:
    """Lower case with numbers up to ten as digits, no articles, contractions with apostrophes."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(contractions.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_form(text: str) -> str:
    """Normalise an answer as VQAv2's evaluation does."""
    return _words(without_punctuation(_one_line(text)), CONTRACTIONS)


def vizwiz_form(text: str) -> str:
    """Normalise an answer as VizWiz's evaluation does."""
    return _words(without_punctuation(_one_line(text)), VIZWIZ_CONTRACTIONS)


def textvqa_form(text: str) -> str:
    """Normalise an answer as TextVQA's evaluation does."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _words(without_punctuation(_one_line(text)), CONTRACTIONS)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the annotators of min(1, matches among the other annotators / 3)."""
    matches = sum(answer == prediction for answer in answers)
    # Each annotator who gave this answer has one match fewer among the others.
    scores = [min(1.0, (matches - (answer == prediction)) / 3) for answer in answers]
    return sum(scores) / len(scores)


def gqa_score(prediction: str, answer: str) -> float:
    """1 if ``gqa_form`` of the prediction equals the unchanged answer, else 0."""
    return float(gqa_form(prediction) == answer)


def vizwiz_score(prediction: str, answers: Sequence[str]) -> float:
    """``soft_accuracy`` with only the prediction in ``vizwiz_form``."""
    return soft_accuracy(vizwiz_form(prediction), answers)


def vqa_score(prediction: str, answers: Sequence[str]) -> float:
    """``soft_accuracy`` with the answers only stripped of punctuation."""
    return soft_accuracy(vqa_form(prediction), [without_punctuation(text) for text in answers])


def textvqa_score(prediction: str, answers: Sequence[str]) -> float:
    """``soft_accuracy`` with both sides in ``textvqa_form``."""
    return soft_accuracy(textvqa_form(prediction), [textvqa_form(text) for text in answers])
