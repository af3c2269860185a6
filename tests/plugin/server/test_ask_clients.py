"""Which answers ``make clients`` counts as wrong; no test runs it, since it downloads packages."""

import sys

from ask_clients import ask, table
from moxin_tiny.demo import QUESTIONS

RIGHT = {question: f" {answer}\n" for question, answer in QUESTIONS}


def test_right_answers_are_good():
    assert table({("a", "plain"): RIGHT, ("b", "streamed"): RIGHT})[1]


def test_one_wrong_or_missing_answer_is_bad():
    question, _ = QUESTIONS[0]
    rest = {key: value for key, value in RIGHT.items() if key != question}
    for given in ({**rest, question: "blue"}, {**rest, question: None}, rest):
        assert not table({("a", "plain"): RIGHT, ("b", "plain"): given})[1]


def test_a_client_that_ends_early_or_says_nothing_is_bad():
    line = '{"client": "a", "way": "plain", "question": "q", "answer": "x"}'
    for code in (f"print('{line}'); raise SystemExit(3)", "print('advice')"):
        answers = ask([sys.executable, "-c", code], "")
        assert any(way.startswith("exit status") for _, way in answers)
        assert not table(answers)[1]
