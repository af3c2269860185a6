"""Copies of the data sets on the Hub have the questions of the published forms."""

import json
import shutil

import pytest
from datasets import Dataset, Features, Image, List, Value
from small_data import asked, read, save_picture

from mlx_vlm_moxin.evals.data.picture import open_picture

TEXT = Value("string")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def parquet(path, features: dict, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(features)).to_parquet(path)


def without_places(examples):
    return [(e.text, e.answer, e.group) for e in examples]


def pictures_of(examples):
    return [open_picture(e.picture).size for e in examples]


@pytest.fixture
def pope_hub(data, tmp_path):
    """lmms-lab/POPE's form of the same questions."""
    rows = [
        {"question": e.text, "answer": e.answer.lower(), "category": e.group, "question_id": "1"}
        | {"image_source": e.picture.stem, "image": str(e.picture)}
        for e in read("pope", data / "pope")
    ]
    names = ("question", "answer", "category", "question_id", "image_source")
    features = {**dict.fromkeys(names, TEXT), "image": Image()}
    parquet(tmp_path / "POPE/data/test-00000-of-00001.parquet", features, rows)
    return tmp_path / "POPE"


@pytest.mark.parametrize("streaming", [False, True])
def test_pope_on_the_hub_has_the_same_questions(data, pope_hub, streaming):
    own, hub = read("pope", data / "pope"), read("pope", pope_hub, streaming=streaming)
    assert without_places(own) == without_places(hub)
    assert pictures_of(own) == pictures_of(hub)
    assert [example.id for example in own] == [example.id for example in hub]


def test_a_category_that_pope_does_not_have_is_named(pope_hub):
    rows = [{"question": "?", "answer": "yes", "category": "hard", "image": None}]
    features = {"question": TEXT, "answer": TEXT, "category": TEXT, "image": Image()}
    shutil.rmtree(pope_hub)
    parquet(pope_hub / "data/test-00000-of-00001.parquet", features, rows)
    with pytest.raises(ValueError, match="category 'hard'"):
        read("pope", pope_hub)


def test_a_row_on_the_hub_without_its_picture_is_named(tmp_path):
    rows = [{"question": "?", "answers": ["a"], "image": None}]
    features = {"question": TEXT, "answers": List(TEXT), "image": Image()}
    parquet(tmp_path / "VizWiz-VQA/data/val-00000-of-00001.parquet", features, rows)
    (example,) = read("vizwiz", tmp_path / "VizWiz-VQA")
    with pytest.raises(ValueError, match="Row 0 of the data set has no picture"):
        example.picture()


def test_gqa_on_the_hub_joins_questions_and_pictures(data, tmp_path):
    own = read("gqa", data / "gqa")
    folder = tmp_path / "GQA"
    rows = [
        {"id": e.id, "imageId": e.picture_id, "question": e.text, "answer": e.answer}
        | {"isBalanced": True}
        for e in own
    ]
    features = dict.fromkeys(("id", "imageId", "question", "answer"), TEXT)
    features["isBalanced"] = Value("bool")
    questions, images = "testdev_balanced_instructions", "testdev_balanced_images"
    parquet(folder / questions / "testdev.parquet", features, rows)
    rows = [
        {"id": name, "image": str(path)}
        for name, path in {e.picture_id: e.picture for e in own}.items()
    ]
    parquet(folder / images / "testdev.parquet", {"id": TEXT, "image": Image()}, rows)
    configurations = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: testdev\n    path: {name}/*.parquet\n"
        for name in (questions, images)
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configurations}---\n")
    hub = read("gqa", folder)
    assert without_places(hub) == without_places(own)
    assert pictures_of(hub) == pictures_of(own)
    assert [example.id for example in hub] == [example.id for example in own]


def test_vizwiz_on_the_hub_has_the_same_questions(data, tmp_path):
    own = read("vizwiz", data / "vizwiz")
    rows = [{"question": e.text, "answers": e.answer, "image": str(e.picture)} for e in own]
    features = {"question": TEXT, "answers": List(TEXT), "image": Image()}
    parquet(tmp_path / "VizWiz-VQA/data/val-00000-of-00001.parquet", features, rows)
    hub = read("vizwiz", tmp_path / "VizWiz-VQA")
    assert [(e.text, e.answer, e.id) for e in hub] == [(e.text, e.answer, e.id) for e in own]
    assert pictures_of(hub) == pictures_of(own)


def test_vsr_on_the_hub_has_links_to_its_pictures(data, tmp_path):
    own = read("vsr", data / "vsr")
    lines = [json.loads(line) for line in (data / "vsr/test.jsonl").read_text().splitlines()]
    features = dict.fromkeys(("image", "image_link", "caption", "relation", "subj", "obj"), TEXT)
    features["label"] = Value("int64")
    parquet(tmp_path / "vsr_zeroshot/data/test-00000-of-00001.parquet", features, lines)
    hub = read("vsr", tmp_path / "vsr_zeroshot")
    assert without_places(hub) == without_places(own)
    assert hub[0].picture == lines[0]["image_link"]


def test_a_row_on_the_hub_that_is_not_in_its_form_is_named(tmp_path):
    (index, _) = next(asked("colour"))
    save_picture(tmp_path / "x.jpg", index)
    rows = [{"question": "?", "answers": [], "image": str(tmp_path / "x.jpg")}]
    features = {"question": TEXT, "answers": List(TEXT), "image": Image()}
    parquet(tmp_path / "VizWiz-VQA/data/val-00000-of-00001.parquet", features, rows)
    with pytest.raises(ValueError, match=r"VizWiz-VQA, row 0, is not in its published form"):
        read("vizwiz", tmp_path / "VizWiz-VQA")
