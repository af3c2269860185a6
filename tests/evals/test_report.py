"""The table: accuracy, its error, the published number and the differences, computed by hand."""

import json

import pytest

from mlx_vlm_moxin.evals import report
from mlx_vlm_moxin.evals.example import Answer
from mlx_vlm_moxin.evals.run import Result
from mlx_vlm_moxin.evals.tasks import TASKS


def result(task: str, *scores: float) -> Result:
    answers = [
        Answer("m", "w", task, str(number), "", "?", "x", "y", score)
        for number, score in enumerate(scores)
    ]
    return Result(answers, TASKS[task].summarise(answers), len(answers), 2.0)


def rows(published: str | None, **locations: str) -> list[report.Row]:
    results = {task: result(task, 1, 1, 1, 0) for task in locations}
    return report.rows(results, locations, published)


def test_accuracy_and_its_error_equal_values_computed_by_hand():
    (row,) = rows(None, gqa="folder")
    assert row.accuracy == 75
    # Variance 3/16 of 4 scores.
    assert row.error == pytest.approx(100 * (3 / 64) ** 0.5)
    assert row.published is None


def test_published_numbers_of_the_same_model_are_shown():
    assert [row.published for row in rows("moxin-7b-vlm", gqa="f", vizwiz="f")] == [64.88, 54.08]
    assert [row.published for row in rows("llama2+7b", gqa="f", vqav2="f")] == [62.44, None]
    shares = report.rows(
        {"pope-text": result("pope-text", 1)}, {"pope-text": "f"}, "llama2-chat+7b"
    )
    assert shares[0].published == 86.8


def test_what_differs_is_the_number_of_examples_the_copy_and_what_is_known():
    (local,) = rows(None, gqa="folder")
    (hub,) = rows(None, gqa="lmms-lab/GQA")
    assert local.differs == "4 of 12,578 examples"
    assert hub.differs == "4 of 12,578 examples; copy lmms-lab/GQA"
    (tally,) = rows(None, tallyqa="folder")
    assert "8,192 simple and 8,192 complex" in tally.differs


def test_the_whole_data_set_in_its_own_form_differs_in_nothing():
    found = result("vsr", *[1] * TASKS["vsr"].examples)
    assert report.rows({"vsr": found}, {"vsr": "folder"}, None)[0].differs == ""


def test_the_table_has_the_same_numbers_on_the_screen_and_as_json(tmp_path, capsys):
    found = rows("moxin-7b-vlm", gqa="f", **{"refcoco+": "f"})
    report.print_table("moxin, 8 bits", found, "moxin-7b-vlm")
    output = capsys.readouterr().out
    for text in ("moxin, 8 bits", "75.00 ± 21.65", "64.88", "71.3", "no box 100.00", "2.00"):
        assert text in output
    path = tmp_path / "scores.json"
    report.save_json(path, "moxin", found, "moxin-7b-vlm")
    task = json.loads(path.read_text())["tasks"]["gqa"]
    assert (task["accuracy"], task["published"], task["examples"]) == (75, 64.88, 4)
    assert task["examples_in_full"] == 12578
