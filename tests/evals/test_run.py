"""Choosing examples, continuing a stopped run, and counting."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlx_vlm_moxin.evals.answering import Answering
from mlx_vlm_moxin.evals.answers_file import AnswersFile
from mlx_vlm_moxin.evals.data.picture import open_picture
from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.example import Answer, Example
from mlx_vlm_moxin.evals.run import Run, read_examples, select
from mlx_vlm_moxin.evals.tasks import TASKS


def example(number: int, group: str = "") -> Example:
    return Example(str(number), f"{number}?", "x", "", str(number), group)


def ids(examples) -> list[str]:
    return [each.id for each in examples]


LISTS = st.lists(st.sampled_from(("a", "b")), min_size=1, max_size=40).map(
    lambda groups: [example(number, group) for number, group in enumerate(groups)]
)


def test_without_a_limit_all_examples_keep_their_order():
    examples = [example(number) for number in range(50)]
    assert select(iter(examples), None, ()) == examples


def test_a_limit_draws_as_the_published_harness_does():
    # random.Random(21).shuffle of range(10), as the harness writes its smaller sets.
    examples = [example(number) for number in range(10)]
    assert ids(select(examples, 10, ())) == ["7", "0", "4", "1", "3", "9", "5", "8", "6", "2"]
    assert ids(select(examples, 3, ())) == ["7", "0", "4"]


@given(LISTS, st.integers(1, 10), st.integers(1, 10), st.sampled_from([(), ("a", "b")]))
def test_a_higher_limit_only_adds_examples(examples, low, more, splits):
    few, many = (ids(select(examples, n, splits)) for n in (low, low + more))
    assert set(few) <= set(many)
    assert len(few) <= low * max(1, len(splits))


@given(LISTS, st.integers(1, 10))
def test_a_limit_counts_in_each_part(examples, limit):
    chosen = select(examples, limit, ("a", "b"))
    for group in ("a", "b"):
        available = sum(each.group == group for each in examples)
        assert sum(each.group == group for each in chosen) == min(limit, available)


def test_a_stream_is_read_no_further_than_needed():
    read = []

    def stream():
        for number in range(100):
            read.append(number)
            yield example(number, "ab"[number % 2])

    assert ids(select(stream(), 2, ("a", "b"), shuffle=False)) == ["0", "1", "2", "3"]
    assert len(read) == 4
    assert ids(select(stream(), 3, (), shuffle=False)) == ["0", "1", "2"]


def test_no_examples_and_one_id_twice_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        select([], None, ())
    with pytest.raises(ValueError, match="no examples"):
        select(iter([]), 3, (), shuffle=False)
    with pytest.raises(ValueError, match="has the id '1' 2 times"):
        select([example(1), example(1)], 3, ())


def answer(example_id: str = "1", model: str = "m", **changes) -> Answer:
    fields = {"prompt": "p?", "answer": [0.1, 0.25], "prediction": "ä\n", "score": 0.3}
    fields |= {"probabilities": [0.1, 1e-30], "group": "g", "task": "t", **changes}
    return Answer(model=model, weights="w", id=example_id, **fields)


def test_answers_are_read_back_as_they_were_written(tmp_path):
    path = tmp_path / "new/folder/answers.jsonl"
    answers = [answer("1"), answer("2", probabilities=None, answer="word")]
    file = AnswersFile(path)
    file.add(answers[:1])
    file.add(answers[1:])
    again = AnswersFile(path)
    assert [again.get("w", "t", "1"), again.get("w", "t", "2")] == answers
    assert again.get("w", "t", "3") is again.get("w", "u", "1") is None
    assert again.get("other", "t", "1") is None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["1", "2"]
    assert {"model", "task", "prompt", "answer", "prediction", "score"} <= rows[0].keys()


@given(st.data())
def test_a_file_cut_anywhere_keeps_its_whole_lines(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "answers.jsonl"
    AnswersFile(path).add(answer(str(number)) for number in range(4))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:place])
    file = AnswersFile(path)
    kept = whole[:place].count(b"\n")
    assert [file.get("w", "t", str(n)) is not None for n in range(4)] == [
        n < kept for n in range(4)
    ]
    file.add(answer(str(number)) for number in range(kept, 4))
    assert path.read_bytes() == whole


def test_half_a_line_longer_than_a_block_is_removed(tmp_path):
    path = tmp_path / "answers.jsonl"
    AnswersFile(path).add([answer()])
    whole = path.read_bytes()
    path.write_bytes(whole + b"{" + b"x" * 200_000)
    assert AnswersFile(path).get("w", "t", "1") == answer()
    assert path.read_bytes() == whole
    path.write_bytes(b"x" * 200_000)
    AnswersFile(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line", [b"{}", b"[]", b"x", b'{"model": 1}', b"\xff"])
def test_a_whole_line_that_is_no_answer_is_named(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    AnswersFile(path).add([answer()])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 2, is not an answer"):
        AnswersFile(path)


class Model:
    """Answers "Yes" or "red" to everything; records its questions, and can be made to fail."""

    def __init__(self, breaks_at: int = 10**9):
        self.batches, self._breaks_at = [], breaks_at

    def prepare(self, image):
        return image

    def token_ids(self, strings):
        return [1] * len(strings)

    def _note(self, questions):
        if sum(map(len, self.batches)) >= self._breaks_at:
            raise KeyboardInterrupt
        self.batches.append([question.picture_id for question in questions])

    def probabilities(self, questions, strings):
        self._note(questions)
        return [[0.75, 0.25]] * len(questions)

    def texts(self, questions, max_tokens):
        self._note(questions)
        return ["red"] * len(questions)


def work(path, model: Model, examples, task: str = "pope", batch_size: int = 2):
    run = Run(model, "m", "w", AnswersFile(path), batch_size, quiet=True)
    return run(task, TASKS[task], examples)


@pytest.fixture(scope="module")
def pope(data):
    return read_examples(TASKS["pope"], Source(str(data / "pope")), None)


def test_a_stopped_run_continues(tmp_path, pope):
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        work(path, Model(breaks_at=5), pope)
    assert len(path.read_text().splitlines()) == 6
    rest = Model()
    result = work(path, rest, pope)
    assert (result.answered, sum(map(len, rest.batches))) == (6, 6)
    assert ids(result.answers) == ids(pope)
    again = Model()
    assert work(path, again, pope).numbers == result.numbers
    assert again.batches == []


def test_the_numbers_do_not_depend_on_the_batch_size(tmp_path, pope):
    results = [work(tmp_path / f"{n}.jsonl", Model(), pope, batch_size=n) for n in (1, 5)]
    assert results[0].answers == results[1].answers
    right = sum(each.answer == "Yes" for each in pope) / len(pope)
    assert results[0].numbers["accuracy"] == pytest.approx(right)


def test_questions_about_one_picture_follow_each_other(tmp_path, data):
    examples = read_examples(TASKS["refcoco+"], Source(str(data / "refcoco+")), None)
    model = Model()
    work(tmp_path / "answers.jsonl", model, examples[::2] + examples[1::2], "refcoco+")
    assert all(first == second for first, second in model.batches)
    assert model.batches[0][0].startswith("refcoco+/")


def test_scores_are_those_of_this_version(tmp_path, pope):
    path = tmp_path / "answers.jsonl"
    numbers = work(path, Model(), pope).numbers
    path.write_text(path.read_text().replace('"score": 0.0', '"score": 1.0'))
    assert work(path, Model(), pope).numbers == numbers


def test_pictures_of_two_data_sets_may_have_one_name(tmp_path, words_model, data):
    right = {}
    for task in ("gqa", "tallyqa"):
        examples = read_examples(TASKS[task], Source(str(data / task)), 1)
        right[task] = [Example(**{**vars(each), "picture_id": "0"}) for each in examples]
    together = Answering(*words_model)
    for number, answering in enumerate((together, None)):
        file = AnswersFile(tmp_path / f"{number}.jsonl")
        for task, examples in right.items():
            run = Run(answering or Answering(*words_model), "m", "w", file, quiet=True)
            run(task, TASKS[task], examples)
    assert (tmp_path / "0.jsonl").read_text() == (tmp_path / "1.jsonl").read_text()


def test_answers_to_other_questions_are_not_taken_over(tmp_path, pope):
    path = tmp_path / "answers.jsonl"
    work(path, Model(), pope)
    other = [Example(**{**vars(pope[0]), "text": "Is there a cat?"}), *pope[1:]]
    with pytest.raises(
        ValueError, match=r"answers\.jsonl contains answers to another copy of pope"
    ):
        work(path, Model(), other)


def test_a_picture_that_cannot_be_read_is_named_and_costs_no_answer(tmp_path, pope):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    examples = [*pope[:3], Example(**{**vars(pope[3]), "picture": broken, "picture_id": "~"})]
    with pytest.raises(ValueError, match=r"Cannot read .*broken\.jpg as a picture"):
        work(tmp_path / "answers.jsonl", Model(), examples, batch_size=1)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3


def test_pictures_are_not_turned_by_their_metadata(tmp_path, words_model):
    _, processor = words_model
    picture = Image.linear_gradient("L").resize((120, 80)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = tmp_path / "plain.png", tmp_path / "turned.png"
    picture.save(plain)
    picture.save(turned, exif=exif)
    assert Image.open(turned).getexif()[0x0112] == 6
    pixels = [
        processor(text=["x"], images=[open_picture(path)])["pixel_values"]
        for path in (plain, turned)
    ]
    assert (pixels[0] == pixels[1]).all()
