"""``python -m mlx_vlm_moxin eval``: all tasks on small local data sets, killed, resumed."""

import json
import os
import signal
import subprocess
import time

import pytest
from moxin_tiny import CHECKPOINT
from support import run_module
from warm_processes import command as warm_command
from warm_processes import offline

from mlx_vlm_moxin.evals import __main__ as command
from mlx_vlm_moxin.evals.published import PUBLISHED, match
from mlx_vlm_moxin.evals.run import Run
from mlx_vlm_moxin.evals.tasks import TASKS

SEVEN = ("vsr", "pope", "gqa", "vizwiz", "refcoco+", "tallyqa", "ocid-ref")


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit status, output and errors of the command in this process."""
    status = command.main([*map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.slow
def test_the_whole_table_is_computed_from_data_sets_in_their_published_forms(
    words_checkpoint, data, tmp_path, capsys
):
    answers, scores = tmp_path / "answers.jsonl", tmp_path / "scores.json"
    options = ["--model", words_checkpoint, "--data", data, "--batch-size", 4, "--limit", 4]
    options += ["--output", answers, "--json", scores]
    status, output, errors = run(capsys, *options, "--tasks", *TASKS)
    assert status == 0, errors
    rows = lines(answers)
    found = json.loads(scores.read_text())["tasks"]
    assert list(found) == list(TASKS)
    for name, task in TASKS.items():
        own = [row for row in rows if row["task"] == name]
        assert len(own) == found[name]["examples"]
        assert len(own) <= 4 * max(1, len(task.splits))
        assert task.title in output
        assert (own[0]["probabilities"] is None) == (task.strings is None)
        for row in own:
            assert row["score"] == task.score(row["prediction"], row["answer"])
    for name in SEVEN:
        published = PUBLISHED["moxin-7b-vlm"][name]
        assert found[name]["published"] == published
        assert f"{published:g}" in output
    assert found["pope-text"]["published"] == PUBLISHED["moxin-7b-vlm"]["pope"]
    assert found["ai2d"]["published"] is None
    assert "4 of 1,222 examples" in found["vsr"]["differs"]
    assert "arXiv 2412.06845" in output
    # The model knows these pictures and these questions; it was not taught to draw boxes.
    for name in ("vsr", "pope", "pope-text", "gqa", "tallyqa", "textvqa", "vqav2"):
        assert found[name]["accuracy"] >= 75, name
    assert found["vizwiz"]["numbers"]["answerable"] == 1
    assert found["refcoco+"]["numbers"]["no box"] == 1


def test_a_killed_run_continues(words_checkpoint, data, tmp_path, capsys):
    answers = tmp_path / "answers.jsonl"
    options = ["--model", words_checkpoint, "--tasks", "pope", "gqa", "--data", data]
    options += ["--limit", 3, "--output", answers]
    environment = offline(os.environ)
    process = subprocess.Popen(
        warm_command("-m", "mlx_vlm_moxin", "eval", *options, environment=environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    try:
        while not answers.exists() or answers.read_bytes().count(b"\n") < 2:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    before = answers.read_bytes()
    assert 2 <= before.count(b"\n") < 12
    # As if the process had been killed in the middle of a line.
    answers.write_bytes(before[: before.rfind(b"\n") + 1] + b'{"model": "x", "ta')
    status, output, errors = run(capsys, *options)
    assert status == 0, errors
    rows = lines(answers)
    assert answers.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert len({(row["task"], row["id"]) for row in rows}) == len(rows) == 9 + 3
    once = tmp_path / "once.jsonl"
    options[options.index(answers)] = once
    assert run(capsys, *options)[0] == 0

    def by_id(path):
        return {(row["task"], row["id"]): row["prediction"] for row in lines(path)}

    assert by_id(answers) == by_id(once)
    assert "Answers:" in output


@pytest.mark.slow
def test_fewer_bits_are_another_model_in_the_same_file(words_checkpoint, data, tmp_path, capsys):
    answers = tmp_path / "answers.jsonl"
    options = ["--model", words_checkpoint, "--tasks", "vsr", "--data", data / "vsr"]
    options += ["--limit", 3, "--output", answers]
    for more in ([], ["--quantize", 8], ["--quantize", 4, "--group-size", 32], []):
        assert run(capsys, *options, *more)[0] == 0
    rows = lines(answers)
    models = [row["model"] for row in rows]
    name = str(words_checkpoint)
    expected = [name, f"{name}, 8 bits, group size 64", f"{name}, 4 bits, group size 32"]
    assert models == [model for model in expected for _ in range(3)]
    shares = {
        tuple(row["probabilities"])
        for row in lines(answers)
        if row["id"] == lines(answers)[0]["id"]
    }
    assert len(shares) == 3


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--tasks", "tallyqa"], "tallyqa has no copy on the Hub; name a folder that contains"),
        (["--tasks", "vsr", "--data", "none"], "No folder none for vsr"),
        (
            ["--tasks", "vsr", "gqa", "--data", "DATA/vsr"],
            "vsr for vsr; it should contain test.jsonl",
        ),
        (["--tasks", "vsr", "--data", "gqa=DATA/gqa"], "gqa, which is not among --tasks"),
        (["--tasks", "vsr", "--data", "DATA", "DATA"], "a folder for all tasks twice"),
        (["--tasks", "tallyqa", "--data", "DATA/vsr"], "does not contain test.json"),
        (["--tasks", "vsr", "--data", "DATA/vsr", "--output", "DATA"], "DATA"),
        (["--tasks", "vsr", "--data", "DATA/vsr", "--model", "MISSING"], "MISSING"),
    ],
)
def test_bad_input_ends_with_one_line_and_status_1(data, tmp_path, capsys, arguments, part):
    places = {"DATA": str(data), "MISSING": str(tmp_path / "missing")}

    def placed(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    output = [] if "--output" in arguments else ["--output", tmp_path / "answers.jsonl"]
    model = [] if "--model" in arguments else ["--model", tmp_path / "model"]
    status, _, errors = run(capsys, *output, *model, *map(placed, arguments))
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 1
    assert placed(part) in line
    assert len(line) <= 500 + 2 * len(str(data))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--tasks", "coco"], "invalid choice: 'coco'"),
        (["--tasks", "vsr", "--limit", "0"], "0 is not above 0"),
        (["--tasks", "vsr", "--batch-size", "x"], "invalid"),
        (["--tasks", "vsr", "--group-size", "32"], "no effect without --quantize"),
        (["--tasks", "vsr", "--streaming"], "needs --limit"),
        ([], "--tasks"),
    ],
)
def test_options_that_make_no_sense_end_with_a_usage_error(capsys, arguments, part):
    with pytest.raises(SystemExit) as error:
        command.main(["--model", "m", *arguments])
    assert error.value.code == 2
    assert part in capsys.readouterr().err.splitlines()[-1]


def test_a_model_without_the_tasks_words_is_refused_in_one_line(data, tmp_path, capsys):
    options = ["--model", CHECKPOINT, "--tasks", "gqa", "vsr", "--data", data, "--limit", 2]
    status, output, errors = run(capsys, *options, "--output", tmp_path / "answers.jsonl")
    assert status == 1
    assert "error: The probability of 'True' is needed" in errors.splitlines()[-1]
    # Earlier answers are kept.
    assert "GQA" in output
    assert len(lines(tmp_path / "answers.jsonl")) == 2


def test_ctrl_c_says_how_to_go_on_and_shows_what_is_done(
    words_checkpoint, data, tmp_path, capsys, monkeypatch
):
    original = Run.__call__

    def stop_at_gqa(self, name, *arguments):
        if name == "gqa":
            raise KeyboardInterrupt
        return original(self, name, *arguments)

    monkeypatch.setattr(Run, "__call__", stop_at_gqa)
    answers = tmp_path / "answers.jsonl"
    options = ["--model", words_checkpoint, "--tasks", "vsr", "gqa", "--data", data]
    with pytest.raises(SystemExit) as error:
        command.main([*map(str, options), "--limit", "1", "--output", str(answers)])
    captured = capsys.readouterr()
    assert error.value.code == 130
    assert f"stopped; answers are kept in {answers}" in captured.err
    assert "VSR" in captured.out
    assert "GQA" not in captured.out


def test_the_command_is_one_of_the_packages():
    result = run_module("mlx_vlm_moxin", "eval", "--help", env={"COLUMNS": "400"})
    assert result.returncode == 0, result.stderr
    for option in ("--model", "--tasks", "--limit", "--batch-size", "--output", "--data"):
        assert option in result.stdout
    for task in TASKS:
        assert task in result.stdout


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("moxin-org/Moxin-7B-VLM-8bit-mlx", "moxin-7b-vlm"),
        ("bobchenyx/Moxin-7B-VLM-hf", "moxin-7b-vlm"),
        ("TRI-ML/prismatic-vlms/llama2-chat+7b", "llama2-chat+7b"),
        ("models/mistral-instruct-v0.1+7b", "mistral-instruct-v0.1+7b"),
        ("moxin", None),
    ],
)
def test_published_numbers_are_found_by_the_models_name(name, row):
    assert match(name) == row


def test_the_published_average_is_that_of_the_seven():
    values = PUBLISHED["moxin-7b-vlm"].values()
    assert round(sum(values) / len(values), 2) == 64.68
    assert all(set(row) == set(SEVEN) for row in PUBLISHED.values())
