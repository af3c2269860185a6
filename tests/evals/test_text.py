"""Answers in words: each evaluation's normal form, and agreement with people, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlm_moxin.evals.scores.contractions import CONTRACTIONS, VIZWIZ_CONTRACTIONS
from mlx_vlm_moxin.evals.scores.text import (
    gqa_form,
    gqa_score,
    soft_accuracy,
    textvqa_form,
    textvqa_score,
    vizwiz_form,
    vizwiz_score,
    vqa_form,
    vqa_score,
)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Red.", "red"),
        ("T-Shirt", "tshirt"),
        ("the Dog", "the dog"),
        (" yes", " yes"),
        ("it's 3:45!", "its 345"),
    ],
)
def test_gqa_drops_punctuation_and_capitals_only(text, form):
    assert gqa_form(text) == form


def test_gqa_does_not_change_the_right_answer():
    assert gqa_score("Red.", "red") == 1
    assert gqa_score("red", "Red.") == 0


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Unanswerable", "unanswerable"),
        ("The red car.", "red car"),
        ("a\tdog\n", "dog"),
        # A mark with a space next to it is removed; otherwise it becomes a space.
        ("yes, no", "yes no"),
        ("yes,no", "yes no"),
        ("x-ray", "x ray"),
        ("x- ray-gun", "x raygun"),
        # A comma between digits removes all marks.
        ("1,000 t-shirts", "1000 tshirts"),
        # Periods are removed unless a digit follows.
        ("3.5 oz.", "3.5 oz"),
        ("e.g. this", "eg this"),
        (".5", ".5"),
        # At most 32 of them.
        ("." * 40, "." * 8),
        ("two", "2"),
        ("None", "0"),
        ("ten an eleven", "10 eleven"),
        ("dont", "don`t"),
        ("don't", "don't"),
        ("arent", "aren't"),
        ("couldnt", "couldn't"),
        ("weve", "we've"),
        ("thats", "that`s"),
        ("$5 50%", "$5 50%"),
        ("", ""),
    ],
)
def test_vizwiz_form_equals_forms_written_by_hand(text, form):
    assert vizwiz_form(text) == form


@pytest.mark.parametrize(
    ("text", "form"),
    [("dont", "don't"), ("couldnt've", "couldn't've"), ("The 1,000", "1000"), ("yall", "y'all")],
)
def test_vqav2_writes_apostrophes(text, form):
    assert vqa_form(text) == form


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Coca-Cola", "coca cola"),
        ("1,000?", "1000"),
        ("bob's", "bob 's"),
        ("The One", "1"),
        # Commas are removed before the marks are handled.
        ("a,b", "ab"),
    ],
)
def test_textvqa_form_equals_forms_written_by_hand(text, form):
    assert textvqa_form(text) == form


@pytest.mark.parametrize(
    ("count", "value"),
    # With m of 10 that agree: m times min(1, (m - 1) / 3), the others min(1, m / 3), / 10.
    [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)],
)
def test_agreement_leaves_each_person_out_once(count, value):
    answers = ["red"] * count + [f"other {n}" for n in range(10 - count)]
    assert soft_accuracy("red", answers) == pytest.approx(value)


def test_vizwiz_brings_only_the_prediction_to_its_form():
    assert vizwiz_score("Red.", ["red"] * 10) == 1
    assert vizwiz_score("red", ["Red."] * 10) == 0
    assert vizwiz_score("Unanswerable", ["unanswerable"] * 3 + ["cup"] * 7) == pytest.approx(0.9)


def test_vqav2_drops_the_punctuation_of_right_answers_and_keeps_their_capitals():
    assert vqa_score("yes!", ["yes."] * 10) == 1
    assert vqa_score("Yes", ["Yes"] * 10) == 0
    assert vqa_score("2", ["two"] * 10) == 0


def test_textvqa_brings_both_sides_to_its_form():
    assert textvqa_score("The Two", ["two."] * 10) == 1


@given(st.text(), st.lists(st.text(), min_size=1, max_size=10))
def test_scores_of_any_text_are_between_0_and_1(prediction, answers):
    for score in (vizwiz_score, vqa_score, textvqa_score):
        assert 0 <= score(prediction, answers) <= 1


WORDS = st.text("abcxyzABC 0123456789", max_size=30)


@given(WORDS)
def test_forms_of_plain_words_are_their_own_forms(text):
    for form in (vizwiz_form, vqa_form, textvqa_form):
        assert form(form(text)) == form(text)


def test_contractions_have_their_apostrophes_or_backticks_in_place():
    assert len(CONTRACTIONS) == len(VIZWIZ_CONTRACTIONS) == 114
    for key, word in CONTRACTIONS.items():
        assert key.replace("'", "")[:4] == word.replace("'", "")[:4]
    assert CONTRACTIONS["thered've"] == "there'd've"
    assert VIZWIZ_CONTRACTIONS["thered`ve"] == "there`d`ve"
    assert VIZWIZ_CONTRACTIONS["couldn'tve"] == "couldn`t`ve"
