"""``convert --evaluate``: the cost of quantisation on benchmarks, and where it is written."""

import json
import re

import mlx.core as mx
import pytest
from moxin_tiny import CHECKPOINT
from small_data import write_gqa, write_vsr
from tiny_words import write_checkpoint

from mlx_vlm_moxin.conversion.command_line import main
from mlx_vlm_moxin.evals.compare import TaskCost, task_cost
from mlx_vlm_moxin.evals.example import Answer
from mlx_vlm_moxin.evals.run import Result


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """moxin-tiny in bfloat16 with the tasks' words."""
    return write_checkpoint(tmp_path_factory.mktemp("words") / "checkpoint", mx.bfloat16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_vsr(root / "vsr")
    write_gqa(root / "gqa")
    return root


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([*map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_the_card_says_what_quantising_cost(checkpoint, data, tmp_path, capsys, monkeypatch, bits):
    monkeypatch.chdir(tmp_path)
    options = ["--hf-path", checkpoint, "--mlx-path", "small", "-q", "--q-bits", bits]
    options += ["--no-verify", "--evaluate", "vsr", "gqa", "--evaluate-data", data]
    options += ["--evaluate-limit", 4, "--evaluate-batch-size", 4]
    status, output, errors = run(capsys, *options)
    assert status == 0, errors
    costs = json.loads((tmp_path / "small/evaluation.json").read_text())
    rows = [
        json.loads(line)
        for line in (tmp_path / "results/eval/small.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 16
    card = (tmp_path / "small/README.md").read_text()
    assert "## Benchmarks" in card
    for task, cost in costs.items():
        scores = {
            model: [row["score"] for row in rows if (row["task"], row["model"]) == (task, model)]
            for model in (str(checkpoint), "small")
        }
        assert cost["source"] == pytest.approx(25 * sum(scores[str(checkpoint)]))
        assert cost["result"] == pytest.approx(25 * sum(scores["small"]))
        assert cost["change"] == pytest.approx(cost["result"] - cost["source"])
        cells = f"{cost['source']:.2f} | {cost['result']:.2f} | {cost['change']:+.2f} ±"
        assert f"| {cost['title']} | 4 | {cells}" in card
    assert re.search(r"GQA +│ +4 │", output)


def test_data_sets_are_checked_before_the_conversion(checkpoint, tmp_path, capsys):
    target = tmp_path / "small"
    options = ["--hf-path", checkpoint, "--mlx-path", target, "--evaluate", "tallyqa"]
    status, _, errors = run(capsys, *options)
    assert status == 1
    assert "error: tallyqa has no copy on the Hub" in errors
    assert not target.exists()


def test_options_without_tasks_are_refused(checkpoint, tmp_path, capsys):
    options = ["--hf-path", checkpoint, "--mlx-path", tmp_path / "small", "--evaluate-limit", 3]
    status, _, errors = run(capsys, *options)
    assert status == 1
    assert "no effect without --evaluate" in errors


def test_a_model_without_the_words_leaves_the_conversion_whole(data, tmp_path, capsys):
    target = tmp_path / "small"
    options = ["--hf-path", CHECKPOINT, "--mlx-path", target, "-q", "--no-verify", "--quiet"]
    options += ["--evaluate", "vsr", "--evaluate-data", data / "vsr", "--evaluate-limit", 2]
    status, _, errors = run(capsys, *options, "--evaluate-output", tmp_path / "answers.jsonl")
    assert status == 1
    assert "error: not evaluated: The probability of 'True'" in errors
    assert f"the model is whole in {target}" in errors
    assert (target / "model.safetensors").exists()


def result(*pairs: tuple[float, str]) -> Result:
    answers = [
        Answer("m", "w", "gqa", str(number), "", "?", "x", prediction, score)
        for number, (score, prediction) in enumerate(pairs)
    ]
    mean = sum(score for score, _ in pairs) / len(pairs)
    return Result(answers, {"accuracy": mean}, len(pairs), 1.0)


def test_the_change_and_its_error_equal_values_computed_by_hand():
    before = result((1, "a"), (1, "b"), (0, "c"), (0, "d"))
    after = result((1, "a"), (0, "x"), (0, "y"), (0, "d"))
    # Changes 0, -1, 0, 0: mean -1/4, variance 3/16, error sqrt(3/16/4).
    cost = task_cost("gqa", before, after)
    assert cost == TaskCost("GQA", 4, 50, 25, -25, pytest.approx(100 * (3 / 64) ** 0.5), 50)
