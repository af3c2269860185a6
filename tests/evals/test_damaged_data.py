"""Damage in a copy of a data set is named in one line."""

import json
import pickle

import pytest
from small_data import read

from mlx_vlm_moxin.evals.data import refer


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
