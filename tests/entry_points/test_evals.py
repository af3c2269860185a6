"""mlx-vlm's benchmarks run on local data sets in their formats."""

import csv
import json
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, List, Value
from mlx_vlm.evals.utils import inference
from PIL import Image as PILImage
from support import image_path, run_module

TEXT, PICTURE, WHOLE = Value("string"), Image(), Value("int64")
TOKENS = 8


def write_parquet(file: Path, features: dict, *records: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(list(records), features=Features(features)).to_parquet(file)


def evaluate(module: str, folder: Path, model: Path, *arguments: str) -> str:
    """Output of ``python -m mlx_vlm.evals.<module>`` on the data set in ``folder``."""
    environment = {"HF_DATASETS_CACHE": str(folder.parent / "cache")}
    options = ["--model", model, "--dataset", folder, "--max-tokens", str(TOKENS)]
    options += ["--output-dir", folder.parent / "results", *arguments]
    result = run_module(f"mlx_vlm.evals.{module}", *options, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def results(folder: Path) -> tuple[list[dict], dict]:
    """Rows of the one predictions file and contents of the one scores file."""
    (rows,) = (folder.parent / "results").glob("*.csv")
    (scores,) = (folder.parent / "results").glob("*.json")
    with rows.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines)), json.loads(scores.read_text(encoding="utf-8"))


@pytest.fixture
def answer(model, processor):
    """The model's answer to a question about pictures, by mlx-vlm's function."""

    def ask(question: str, *names: str) -> str:
        pictures = [PILImage.open(image_path(name)).convert("RGB") for name in names]
        return inference(model, processor, question, pictures, max_tokens=TOKENS)

    return ask


def test_mmstar_scores_answers(fp32_checkpoint, answer, tmp_path):
    folder = tmp_path / "MMStar"
    names = ("question", "answer", "category", "l2_category", "meta_info")
    question = "Which? Options: A: dog, B: cat"
    record = dict(zip(names, (question, "A", "math", "geometry", "{}")))
    features = {**dict.fromkeys(names, TEXT), "image": PICTURE}
    pictures = [{**record, "image": image_path(name)} for name in ("photo", "tall")]
    write_parquet(folder / "data" / "val-00000-of-00001.parquet", features, *pictures)
    output = evaluate("mmstar", folder, fp32_checkpoint, "--split", "val", "--temperature", "0")
    rows, scores = results(folder)
    assert [row["prediction"] for row in rows] == [answer(question, n) for n in ("photo", "tall")]
    correct = sum(int(row["score"]) for row in rows)
    assert scores["final score"] == correct / 2
    assert f"Final Score: {correct}/2" in output


def test_math_vista_scores_answers(fp32_checkpoint, answer, tmp_path):
    folder = tmp_path / "MathVista"
    names = ("pid", "question", "query", "question_type", "answer_type", "answer", "unit")
    query = "How many?\nHint: answer with a number."
    record = dict(zip(names, ("1", "How many?", query, "free_form", "text", "x", "")))
    record["answer"] = answer(query, "photo")
    record |= {"choices": [], "metadata": {"category": "general"}, "precision": 0}
    record["decoded_image"] = image_path("photo")
    features = {**dict.fromkeys(names, TEXT), "choices": List(TEXT), "precision": WHOLE}
    features |= {"metadata": {"category": TEXT}, "decoded_image": PICTURE}
    wrong = {**record, "pid": "2", "answer": "another answer"}
    write_parquet(folder / "data" / "testmini-00000-of-00001.parquet", features, record, wrong)
    evaluate("math_vista", folder, fp32_checkpoint)
    rows, scores = results(folder)
    assert {row["response"] for row in rows} == {record["answer"]}
    assert (scores["correct"], scores["total_samples"]) == (1, 2)
    assert scores["category_scores"] == {"general": {"correct": 1, "total": 2}}


@pytest.mark.parametrize("batch_size", ["1", "2"])
def test_ocrbench_scores_answers(fp32_checkpoint, answer, tmp_path, batch_size):
    folder = tmp_path / "OCRBench"
    question = "What is written?"
    right = answer(question, "photo")
    record = {"id": "a", "dataset": "IIIT5K", "type": "text", "question": question}
    records = [
        {**record, "answer": [right], "image": image_path("photo")},
        {**record, "id": "b", "answer": ["another"], "image": image_path("tall")},
    ]
    features = {**dict.fromkeys(record, TEXT), "answer": List(TEXT), "image": PICTURE}
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", features, *records)
    evaluate("ocrbench", folder, fp32_checkpoint, "--batch-size", batch_size)
    rows, scores = results(folder)
    found = {row["id"]: (row["response"], row["correct"]) for row in rows}
    assert found == {"a": (right, "True"), "b": (answer(question, "tall"), "False")}
    assert scores["correct"] == 1


def test_mmmu_counts_questions_with_two_pictures_as_wrong(fp32_checkpoint, answer, tmp_path):
    folder = tmp_path / "MMMU"
    names = ("id", "question", "options", "answer", "subfield", "topic_difficulty")
    record = dict(zip(names, ("1", "<image 1> Who?", "['Ann', 'Bob']", "A", "Law", "Easy")))
    record |= {"question_type": "multiple-choice", "image_1": image_path("photo"), "image_2": None}
    two = {**record, "id": "2", "image_2": image_path("tall")}
    features = {**dict.fromkeys(names, TEXT), "question_type": TEXT}
    features |= {"image_1": PICTURE, "image_2": PICTURE}
    write_parquet(folder / "Accounting" / "validation.parquet", features, record, two)
    configuration = "---\nconfigs:\n- config_name: Accounting\n  data_files:\n"
    configuration += "  - split: validation\n    path: Accounting/validation.parquet\n---\n"
    (folder / "README.md").write_text(configuration, encoding="utf-8")
    output = evaluate("mmmu", folder, fp32_checkpoint, "--subset", "Accounting")
    rows, scores = results(folder)
    asked = "Who?\n\nOptions:\nA. Ann\nB. Bob"
    assert [row["prediction"] for row in rows] == [answer(asked, "photo"), ""]
    assert "Moxin supports one image per prompt" in output or "only use 1 image" in output
    assert scores["total_questions"] == 2


def test_verbose_inference_gives_the_same_answer(model, processor):
    """mlx-vlm alone raises a TypeError here, for any model."""
    arguments = model, processor, "What is shown?", PILImage.open(image_path("photo"))
    quiet = inference(*arguments, max_tokens=2)
    assert inference(*arguments, max_tokens=2, verbose=True) == quiet
