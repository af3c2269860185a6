"""Each data set in its published form."""

import json

import pytest
from small_data import COUNT, read

from mlx_vlm_moxin.evals.data import ocid_ref
from mlx_vlm_moxin.evals.data.picture import open_picture
from mlx_vlm_moxin.evals.tasks import TASKS


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
