"""The speed command runs the tasks' code; its figures are not checked."""

import json

import pytest
from PIL import Image
from tiny_words import MEANINGS

from mlx_vlm_moxin.evals import speed
from mlx_vlm_moxin.evals.answering import Answering, Question
from mlx_vlm_moxin.evals.stand_in import stand_in_processor
from mlx_vlm_moxin.evals.tasks import TASKS


@pytest.mark.slow
def test_the_command_prints_and_writes_a_figure_per_task_and_batch_size(
    words_checkpoint, tmp_path, capsys
):
    path = tmp_path / "speed.json"
    options = ["--model", words_checkpoint, "--tasks", "vsr", "gqa", "--batch-sizes", 1, 2]
    assert speed.main([*map(str, options), "--examples", "2", "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("checkpoint, bf16, ")
    assert lines[2] == "| examples per second | tokens of an answer | batch 1 | batch 2 |"
    assert [line.split(" | ")[:2] for line in lines[4:]] == [
        ["| VSR", "none, one prefill"],
        ["| GQA", "3"],
    ]
    figures = json.loads(path.read_text())
    assert [(task, [*found]) for task, found in figures.items()] == [
        ("vsr", ["1", "2"]),
        ("gqa", ["1", "2"]),
    ]
    assert all(value > 0 for found in figures.values() for value in found.values())


def test_every_task_of_the_published_table_has_a_question_and_an_answer(tmp_path):
    pictures = speed.write_pictures(tmp_path, 2)
    assert Image.open(pictures[0]).size == (640, 480)
    for task in speed.QUESTIONS:
        examples = speed.generated_examples(task, pictures)
        assert speed.QUESTIONS[task] in TASKS[task].prompt(examples[0])
        assert (task in speed.ANSWER_TOKENS) == (TASKS[task].strings is None)


def test_random_weights_need_no_tokenizer(words_model, monkeypatch):
    model, _ = words_model
    processor = stand_in_processor(model.config)
    answering = Answering(model, processor)
    assert len(answering.token_ids([*MEANINGS])) == len(MEANINGS)
    question = Question(
        TASKS["gqa"].template.format(text="Where is it?"), Image.new("RGB", (9, 9)), "x"
    )
    ids = processor(text=["In: 1234567\nOut:"], images=[question.image])["input_ids"]
    assert ids.shape == (1, 1 + processor.num_image_tokens + 4)
    assert len(answering.probabilities([question], ["Yes", "No"])[0]) == 2
    # No token ends an answer, so each has the requested number of tokens.
    monkeypatch.setattr(processor.tokenizer, "decode", lambda ids, **_: str(len(ids)))
    assert answering.texts([question, question], 5) == ["5", "5"]


@pytest.mark.parametrize("option", ["--batch-sizes", "--examples"])
def test_numbers_of_zero_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        speed.main([option, "0"])
    assert "must be above 0" in capsys.readouterr().err


def test_a_missing_checkpoint_ends_with_one_line(tmp_path, capsys):
    assert speed.main(["--model", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
