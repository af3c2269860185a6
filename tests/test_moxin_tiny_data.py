"""Moxin-tiny's test set shares nothing with its training data, and has unique answers."""

import pytest
from moxin_tiny import FOLDER
from moxin_tiny.dataset import balanced_questions, picture_hash, picture_questions
from moxin_tiny.drawing import draw, mix_colour
from moxin_tiny.questions import KINDS, names_held_out, possible_answers
from moxin_tiny.scenes import (
    COLOURS,
    HELD_OUT_COMBINATIONS,
    HELD_OUT_MIXES,
    HELD_OUT_TINTS,
    TRAIN_MIXES,
    draw_scene,
)
from moxin_tiny.train import TEST_PER_KIND

MAX_BYTES = 6_000_000


def test_training_pictures_and_texts_know_nothing_that_is_held_out():
    for index in range(1500):
        scene = draw_scene("train", index)
        assert scene.tint not in HELD_OUT_TINTS
        for thing in scene.things:
            assert thing.combination not in HELD_OUT_COMBINATIONS
            assert any(low <= thing.mix <= high for low, high in TRAIN_MIXES)
        for question in picture_questions("train", index, scene, 8):
            assert not names_held_out(f"{question.text} {question.answer}")


def test_every_test_picture_shows_what_training_never_did():
    indices = {index for index, _ in balanced_questions("test", TEST_PER_KIND)}
    for scene in (draw_scene("test", index) for index in indices):
        assert scene.tint in HELD_OUT_TINTS
        assert HELD_OUT_COMBINATIONS.intersection(thing.combination for thing in scene.things)


def test_no_colour_mix_is_in_both_sets():
    def mixes(colour, ranges):
        return {
            mix_colour(colour, low + (high - low) * k / 999)
            for low, high in ranges
            for k in range(1000)
        }

    for colour in COLOURS:
        assert not mixes(colour, TRAIN_MIXES) & mixes(colour, HELD_OUT_MIXES)


def test_no_test_picture_is_among_training_pictures():
    test = {picture_hash(draw(draw_scene("test", index))) for index in range(300)}
    train = {picture_hash(draw(draw_scene("train", index))) for index in range(300)}
    assert len(test) == len(train) == 300
    assert not test & train


def test_the_test_set_has_as_many_questions_of_every_kind():
    questions = [question for _, question in balanced_questions("test", TEST_PER_KIND)]
    assert len(questions) >= 2000
    assert {kind: sum(q.kind == kind for q in questions) for kind in KINDS} == dict.fromkeys(
        KINDS, TEST_PER_KIND
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_question_has_two_right_answers(split):
    for index in range(200):
        scene = draw_scene(split, index)
        answers: dict[str, str] = {}
        for kind in KINDS:
            for answer, texts in possible_answers(scene, kind, split).items():
                for text in texts:
                    assert answers.setdefault(text, answer) == answer


def test_everything_shipped_is_at_most_6_megabytes():
    files = [file for file in FOLDER.rglob("*") if "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files if file.is_file()) <= MAX_BYTES
