"""Each data set in its published form, damaged copies, and copies on the Hub."""

import json
import pickle
import shutil

import pytest
from datasets import Dataset, Features, Image, List, Value
from small_data import COUNT, asked, save_picture

from mlx_vlm_moxin.evals.data import ocid_ref, refer
from mlx_vlm_moxin.evals.data.picture import open_picture
from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.tasks import TASKS

TEXT = Value("string")


def read(task: str, folder, **options):
    return list(TASKS[task].read(Source(str(folder), **options)))


@pytest.fixture
def copy(data, tmp_path):
    """A copy of a task's folder, to be damaged."""

    def make(task: str):
        return shutil.copytree(data / task, tmp_path / task)

    return make


@pytest.mark.parametrize("task", [task for task in TASKS if not TASKS[task].folder])
def test_every_form_gives_examples_with_a_picture_each(data, task):
    examples = read(task, data / task)
    assert len(examples) == (4 if task == "ai2d" else COUNT)
    assert len({example.id for example in examples}) == len(examples)
    for example in examples:
        assert open_picture(example.picture).width > 50
        assert json.loads(json.dumps(example.answer)) == example.answer
        assert example.text in TASKS[task].prompt(example)


def test_prompts_are_the_published_ones(data):
    def first(task: str) -> str:
        return TASKS[task].prompt(read(task, data / task)[0])

    assert first("gqa").endswith("?\nAnswer the question using a single word or phrase.")
    assert first("vizwiz").endswith(
        "?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )
    assert first("vsr").startswith('Based on the image, is this statement "True" or "False"? ')
    assert first("vsr").endswith('?\nRespond with "True" or "False" directly.')
    assert first("refcoco+").startswith(
        'Please provide the bounding box coordinate of the region this sentence describes: "'
    )
    lines = first("tallyqa").split("\n")
    assert lines[1:3] + lines[-2:] == [
        "A. 0",
        "B. 1",
        "P. 15",
        "Answer with the option's letter from the given choices directly.",
    ]
    assert first("ai2d").split("\n")[1:-1] == ["A. 0", "B. 1", "C. 2", "D. 3"]


def test_braces_in_a_question_stay(data):
    example = read("gqa", data / "gqa")[0]
    odd = type(example)("1", "{text} {0} {choices}?", "", "", "")
    assert TASKS["gqa"].prompt(odd).startswith("{text} {0} {choices}?\n")


def test_gqa_has_only_balanced_questions(data):
    assert "unbalanced" not in {example.id for example in read("gqa", data / "gqa")}


def test_pope_has_its_parts_in_the_harness_order(data):
    examples = read("pope", data / "pope")
    assert [e.group for e in examples] == [g for g in TASKS["pope"].splits for _ in range(4)]
    assert {example.answer for example in examples} == {"Yes", "No"}


def test_expressions_are_those_of_the_split_sentence_by_sentence(data):
    examples = read("refcocog", data / "refcocog")
    assert [example.id for example in examples[:4]] == ["0-0", "0-1", "1-2", "1-3"]
    assert examples[0].answer == examples[1].answer


@pytest.mark.parametrize(
    ("take", "group"),
    [
        (0, "minimum"),
        (9, "minimum"),
        (10, "medium"),
        (16, "medium"),
        (17, "maximum"),
        (20, "maximum"),
    ],
)
def test_clutter_follows_from_the_number_of_the_picture(take, group):
    assert ocid_ref.clutter(take) == f"{group} clutter"


def test_a_count_above_fifteen_has_no_letter(copy):
    folder = copy("tallyqa")
    rows = json.loads((folder / "test.json").read_text())
    rows[0]["answer"], rows[1]["answer"] = 15, 16
    (folder / "test.json").write_text(json.dumps(rows))
    assert [example.answer for example in read("tallyqa", folder)[:2]] == ["P", "16"]


def test_ocr_words_are_in_one_of_two_variants(data, copy):
    with_ocr = read("textvqa-ocr", data / "textvqa")
    plain = read("textvqa", data / "textvqa")
    assert with_ocr[0].text == f"{plain[0].text}\nReference OCR token: stop, 12"
    folder = copy("textvqa")
    ocr = folder / "textvqa_val_v051_ocr.jsonl"
    ocr.unlink()
    assert read("textvqa", folder) == [
        type(e)(e.id, e.text, e.answer, folder / "train_images" / e.picture_id, e.picture_id)
        for e in plain
    ]
    with pytest.raises(FileNotFoundError, match="textvqa_val_v051_ocr"):
        read("textvqa-ocr", folder)
    ocr.write_text('{"text": "one?"}\n')
    with pytest.raises(ValueError, match=r"has 1 questions, TextVQA_0\.5\.1_val\.json has 12"):
        read("textvqa-ocr", folder)


def test_pictures_may_be_in_another_folder(copy, tmp_path):
    folder = copy("vqav2")
    (folder / "val2014").rename(tmp_path / "coco")
    with pytest.raises(FileNotFoundError, match=r"No picture COCO_val2014_.*--image-folder"):
        read("vqav2", folder)
    assert len(read("vqav2", folder, image_folders=(tmp_path / "coco",))) == COUNT


def test_refcoco_is_also_found_in_the_harness_folders(copy):
    folder = copy("refcoco+")
    (folder / "refcoco+/train2014").mkdir()
    for picture in (folder / "train2014").iterdir():
        picture.rename(folder / "refcoco+/train2014" / picture.name)
    assert len(read("refcoco+", folder)) == len(read("refcoco+", folder / "refcoco+")) == COUNT


def damaged_rows(name: str, change):
    """Damage the first row of a JSON file."""

    def damage(folder):
        path = folder / name
        rows = json.loads(path.read_text())
        change(next(iter(rows.values())) if isinstance(rows, dict) else rows[0])
        path.write_text(json.dumps(rows))

    return damage


def write(name: str, content: bytes | str):
    def damage(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def refs(value: object):
    return write("refcoco+/refs(unc).p", pickle.dumps(value, protocol=2))


REF = {"ref_id": 1, "ann_id": 7, "image_id": 100, "split": "val", "sentences": []}


@pytest.mark.parametrize(
    ("task", "damage", "reason"),
    [
        ("gqa", write("testdev_balanced_questions.json", "{"), "published form"),
        ("gqa", write("testdev_balanced_questions.json", "[]"), "published form"),
        (
            "gqa",
            damaged_rows("testdev_balanced_questions.json", lambda row: row.pop("answer")),
            r"questions\.json is not in its published form \(200\.answer: Field required\)",
        ),
        (
            "gqa",
            damaged_rows(
                "testdev_balanced_questions.json", lambda row: row.update(imageId="../../x")
            ),
            "leads outside the data set's folder",
        ),
        ("vizwiz", damaged_rows("val.json", lambda row: row.update(answers=[])), "0.answers"),
        ("vizwiz", damaged_rows("val.json", lambda row: row.update(answerable=2)), "answerable"),
        ("vsr", write("test.jsonl", '{"image": 1}\n'), "test.jsonl, line 1,"),
        ("vsr", write("test.jsonl", b"\xff\n"), "test.jsonl, line 1,"),
        ("pope", write("coco_pope_random.json", "[]\n"), "line 1, is not a JSON object"),
        ("tallyqa", damaged_rows("test.json", lambda row: row.update(answer=-1)), "0.answer"),
        ("tallyqa", damaged_rows("test.json", lambda row: row.update(image="no.jpg")), "no.jpg"),
        (
            "ocid-ref",
            damaged_rows("val_expressions.json", lambda row: row.update(bbox="[1, 2]")),
            "0.bbox",
        ),
        (
            "ocid-ref",
            damaged_rows("val_expressions.json", lambda row: row.update(bbox="[5, 5, 2, 9]")),
            "expression 0: the box",
        ),
        (
            "ocid-ref",
            damaged_rows("val_expressions.json", lambda row: row.update(take_id=21)),
            "take_id",
        ),
        ("refcoco+", refs({"a": 1}), "contains dict instead of a list"),
        ("refcoco+", refs([3]), "published form"),
        ("refcoco+", refs([{**REF, "sentences": [{"sent": 1}]}]), "0.sentences.0"),
        ("refcoco+", refs([{**REF, "ann_id": 1}]), "has no annotation 1 of a picture 100"),
        ("refcoco+", write("refcoco+/instances.json", "{}"), "images: Field required"),
        ("refcoco+", lambda folder: (folder / "refcoco+/instances.json").unlink(), "instances"),
        ("ai2d", lambda folder: (folder / "ai2d_test_ids.csv").unlink(), "ai2d_test_ids.csv"),
        ("ai2d", write("ai2d_test_ids.csv", "one\n"), "one number per line, not 'one'"),
        (
            "vqav2",
            write("v2_OpenEnded_mscoco_val2014_questions.json", '{"questions": []}'),
            "no question",
        ),
    ],
)
def test_damage_in_a_copy_is_named_in_one_line(copy, task, damage, reason):
    folder = copy(task)
    damage(folder)
    with pytest.raises((OSError, ValueError), match=reason) as error:
        read(task, folder)
    assert len(" ".join(str(error.value).split())) < 500 + len(str(folder))


def test_a_list_that_is_named_many_times_is_not_read(copy, monkeypatch):
    monkeypatch.setattr(refer, "MAX_SENTENCES", 1000)
    sentences = [{"sent": "a", "sent_id": 1}] * 100
    folder = copy("refcoco+")
    refs([{**REF, "sentences": sentences}] * 100)(folder)
    with pytest.raises(ValueError, match="more than 1000 sentences"):
        read("refcoco+", folder)


@pytest.mark.parametrize("task", ["tallyqa", "ocid-ref", "refcoco+", "textvqa", "vqav2", "ai2d"])
def test_a_folder_without_the_data_set_is_named(tmp_path, task):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} does not contain"):
        read(task, tmp_path)
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        read(task, tmp_path / "none")


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
