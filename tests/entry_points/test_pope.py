"""POPE: scores computed by hand, questions in both formats, one run of the command."""

import csv
import json
import shutil

import PIL.Image
import pytest
from datasets import Dataset, Features, Image, Value
from support import IMAGES, image_path, run_module

from mlx_vlm_moxin.evals.pope_questions import load_questions
from mlx_vlm_moxin.evals.pope_scores import Scores, is_clear, predicted_label, score

QUESTIONS = {
    "random": [("photo", "Is there a dog in the image?", "yes")],
    "popular": [("tall", "Is there a car in the image?", "no"), ("gray", "A cup?", "yes")],
    "adversarial": [("rgba", "Is there a cat in the image?", "no")],
}


@pytest.mark.parametrize(
    ("answer", "label", "clear"),
    [
        ("Yes", "yes", True),
        ("yes, there is.", "yes", True),
        ("No", "no", True),
        ("No.", "no", True),
        ("no, there is not", "no", True),
        ("NO", "no", True),
        ("No\nIn: next", "no", True),
        ("There is not a dog", "no", True),
        ("Yes. There is no doubt", "yes", True),
        ("Nothing", "yes", False),
        ("A dog", "yes", False),
        ("", "yes", False),
    ],
)
def test_an_answer_is_yes_unless_its_first_sentence_denies(answer, label, clear):
    assert (predicted_label(answer), is_clear(answer)) == (label, clear)


def rows(category: str, *pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"category": category, "prediction": p, "answer": a} for p, a in pairs]


def test_scores_equal_values_computed_by_hand():
    # random: TP 2, FP 1, TN 1, FN 1; popular: TP 0, FP 1, TN 3, FN 0.
    answers = rows("random", *[("Yes", "yes")] * 2, ("Yes", "no"), ("No", "no"), ("No", "yes"))
    answers += rows("popular", ("A cup", "no"), *[("No", "no")] * 3)
    result = {name: scores.to_dict() for name, scores in score(reversed(answers)).items()}
    assert list(result) == ["random", "popular", "overall"]
    assert result["random"] == {
        "questions": 5,
        "accuracy": 3 / 5,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "f1": pytest.approx(2 / 3),
        "yes_ratio": 3 / 5,
        "unclear": 0,
    }
    assert result["popular"] == {
        "questions": 4,
        "accuracy": 3 / 4,
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "yes_ratio": 1 / 4,
        "unclear": 1,
    }
    overall = result["overall"]
    assert overall["accuracy"] == 6 / 9
    assert (overall["precision"], overall["recall"]) == (2 / 4, 2 / 3)
    assert overall["f1"] == pytest.approx(4 / 7)
    assert (overall["yes_ratio"], overall["unclear"]) == (4 / 9, 1)


def test_numbers_without_cases_are_zero():
    assert set(Scores().to_dict().values()) == {0}


def test_a_prediction_that_cannot_be_scored_is_named():
    with pytest.raises(ValueError, match="Row 2 of the predictions needs"):
        score(rows("random", ("Yes", "yes"), ("Yes", "maybe")))
    with pytest.raises(ValueError, match="no predictions"):
        score([])


@pytest.fixture
def own_files(tmp_path):
    """POPE's format: a file of JSON lines per category, next to the pictures."""
    folder = tmp_path / "coco"
    folder.mkdir()
    for category, questions in QUESTIONS.items():
        lines = []
        for number, (name, text, label) in enumerate(questions, start=1):
            shutil.copy(image_path(name), folder)
            row = {"question_id": number, "image": f"{name}.png", "text": text, "label": label}
            lines.append(json.dumps(row))
        file = folder / f"coco_pope_{category}.json"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def hub_dataset(tmp_path):
    """The format of ``lmms-lab/POPE``: parquet with pictures, answers and categories."""
    records = [
        {
            "id": str(number),
            "question_id": str(number),
            "question": text,
            "answer": label,
            "image_source": name,
            "image": image_path(name),
            "category": category,
        }
        for category, questions in QUESTIONS.items()
        for number, (name, text, label) in enumerate(questions, start=1)
    ]
    names = ("id", "question_id", "question", "answer", "image_source", "category")
    features = Features({**{name: Value("string") for name in names}, "image": Image()})
    folder = tmp_path / "POPE"
    (folder / "data").mkdir(parents=True)
    dataset = Dataset.from_list(records, features=features)
    dataset.to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


def asked(questions) -> list[tuple[str, str, str, str]]:
    return [(q.category, q.question, q.answer, q.question_id) for q in questions]


def test_both_formats_give_the_same_questions(own_files, hub_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    first, second = list(load_questions(str(own_files))), list(load_questions(str(hub_dataset)))
    assert asked(first) == asked(second)
    assert len(first) == 4
    assert first[0].image == own_files / "photo.png"
    assert second[0].image.size == PIL.Image.open(first[0].image).size
    assert len(list(load_questions(str(hub_dataset), max_samples=3))) == 3


def test_one_question_file_and_a_folder_of_pictures_are_read(own_files):
    file = str(own_files / "coco_pope_popular.json")
    (own_files / "tall.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"line 1, asks about .*tall.png.*--image-folder"):
        load_questions(file)
    questions = load_questions(file, image_folder=IMAGES)
    assert [q.image.name for q in questions] == ["tall.png", "gray.png"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "line 2, is not JSON"),
        (
            '{"text": "A?", "label": "maybe", "image": "photo.png"}',
            "line 2, has the answer 'maybe'",
        ),
        ('{"text": "A?", "image": "photo.png"}', "line 2, has no label"),
    ],
)
def test_a_line_that_is_no_question_is_named(own_files, line, part):
    with (own_files / "coco_pope_random.json").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=part):
        load_questions(str(own_files))


def run_pope(tmp_path, *arguments: str):
    environment = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    return run_module("mlx_vlm_moxin.evals.pope", *arguments, cwd=tmp_path, env=environment)


def test_the_command_asks_and_scores(own_files, fp32_checkpoint, tmp_path):
    options = ["--model", fp32_checkpoint, "--dataset", own_files, "--max-tokens", "6"]
    result = run_pope(tmp_path, *options, "--verbose")
    assert result.returncode == 0, result.stderr
    file = tmp_path / "results/pope/checkpoint_coco_test_predictions.csv"
    with file.open(newline="", encoding="utf-8") as lines:
        answers = list(csv.DictReader(lines))
    assert [row["image_source"][:-4] for row in answers] == ["photo", "tall", "gray", "rgba"]
    assert len({row["prediction"] for row in answers}) > 1
    written = json.loads(file.with_name("checkpoint_coco_test_predictions_score.json").read_text())
    assert written == {name: scores.to_dict() for name, scores in score(answers).items()}
    assert "adversarial" in result.stdout


def test_bad_input_ends_the_command_with_one_line(own_files, tmp_path):
    for arguments, part in (
        (["--prediction-file", "none.csv"], "none.csv"),
        (["--model", "m", "--dataset", str(tmp_path / "none")], "none"),
        (["--model", "m", "--dataset", "../none"], "neither a local directory nor a Hub"),
        (["--model", "m", "--dataset", str(own_files), "--image-folder", "x"], "photo.png"),
    ):
        result = run_pope(tmp_path, *arguments)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert result.stderr.strip().splitlines()[-1].startswith("error: ")
        assert part in result.stderr
