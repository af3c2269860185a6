"""Small data sets about moxin-tiny's pictures, each in its published form."""

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moxin_tiny.dataset import balanced_questions
from moxin_tiny.drawing import draw
from moxin_tiny.questions import NUMBERS, Question
from moxin_tiny.scenes import Scene, Thing, draw_scene
from PIL import Image

from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.example import Example
from mlx_vlm_moxin.evals.tasks import TASKS

SPLIT = "test"
COUNT = 12


def asked(*kinds: str, count: int = COUNT) -> Iterator[tuple[int, Question]]:
    """``count`` questions of some kinds, and the number of each one's picture."""
    questions = balanced_questions(SPLIT, count, 0)
    return iter([(index, q) for index, q in questions if q.kind in kinds][:count])


def picture(index: int) -> Image.Image:
    return draw(draw_scene(SPLIT, index))


def save_picture(path: Path, index: int) -> None:
    """Draw a picture unless it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        picture(index).save(path, quality=95)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_vsr(folder: Path) -> None:
    rows = []
    for index, question in asked("exists", "relation"):
        name = f"{index:012d}.jpg"
        save_picture(folder / "images" / name, index)
        label = int(question.answer == "yes")
        row = {"image": name, "caption": question.text, "label": label, "relation": "at"}
        rows.append({**row, "image_link": f"http://127.0.0.1/{name}", "subj": "", "obj": ""})
    write_lines(folder / "test.jsonl", rows)


def write_pope(folder: Path) -> None:
    rows = {"random": [], "popular": [], "adversarial": []}
    for number, (index, question) in enumerate(asked("exists")):
        name = f"COCO_val2014_{index:012d}.jpg"
        save_picture(folder / "val2014" / name, index)
        part = rows[list(rows)[number % 3]]
        row = {"question_id": len(part) + 1, "image": name, "text": question.text}
        part.append({**row, "label": question.answer})
    for part, lines in rows.items():
        write_lines(folder / f"coco_pope_{part}.json", lines)


def write_gqa(folder: Path) -> None:
    questions = {}
    for number, (index, question) in enumerate(asked("colour", "shape", "size")):
        save_picture(folder / "images" / f"{index}.jpg", index)
        questions[f"20{number}"] = {
            "imageId": str(index),
            "question": question.text,
            "answer": question.answer,
            "fullAnswer": f"It is {question.answer}.",
            "isBalanced": True,
            "types": {},
        }
    questions["unbalanced"] = {**questions["200"], "isBalanced": False}
    write_json(folder / "testdev_balanced_questions.json", questions)


def write_vizwiz(folder: Path) -> None:
    rows = []
    for number, (index, question) in enumerate(asked("colour", "place")):
        name = f"VizWiz_val_{number:08d}.jpg"
        save_picture(folder / "val" / name, index)
        words = [question.answer] * 6 + ["unanswerable"] * 4
        if number % 4 == 3:
            words = ["unanswerable"] * 9 + [question.answer]
        answers = [{"answer": word, "answer_confidence": "yes"} for word in words]
        row = {"image": name, "question": question.text, "answers": answers}
        rows.append({**row, "answerable": int(number % 4 != 3), "answer_type": "other"})
    write_json(folder / "val.json", rows)


def _corners(scene: Scene, thing: Thing) -> list[float]:
    """A box around a thing, in pixels."""
    x, y, r = thing.x * scene.width, thing.y * scene.height, thing.radius
    return [max(0.0, x - r), max(0.0, y - r), min(scene.width, x + r), min(scene.height, y + r)]


def _refer(name: str, refs_file: str, protocol: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        refs, images, annotations = [], [], []
        for index in range(COUNT // 2):
            scene = draw_scene(SPLIT, index)
            thing = scene.things[0]
            image_id = 100 + index
            save_picture(folder / "train2014" / f"COCO_train2014_{image_id:012d}.jpg", index)
            x1, y1, x2, y2 = _corners(scene, thing)
            phrase = f"{thing.colour} {thing.shape}"
            sentences = [
                {"tokens": text.split(), "raw": text, "sent": text, "sent_id": 2 * index + number}
                for number, text in enumerate((phrase, f"the {phrase}"))
            ]
            ref = {"ref_id": index, "ann_id": 7 + index, "image_id": image_id, "category_id": 1}
            ref |= {"split": "val", "sentences": sentences, "file_name": "x.jpg"}
            refs += [ref, {**ref, "ref_id": 1000 + index, "split": "testA"}]
            images.append({"id": image_id, "width": scene.width, "height": scene.height})
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append({"id": 7 + index, "image_id": image_id, "bbox": box, "area": 1})
        place = folder / name
        place.mkdir(parents=True)
        (place / refs_file).write_bytes(pickle.dumps(refs, protocol=protocol))
        instances = {"images": images, "annotations": annotations, "categories": [], "info": {}}
        write_json(place / "instances.json", instances)

    return write


def write_ocid_ref(folder: Path) -> None:
    rows = {}
    for index in range(COUNT):
        path = Path("ARID20/floor/top") / f"{index}.png"
        target = folder / "OCID-dataset" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        picture(index).resize((640, 480)).save(target)
        row = {"scene_path": str(path), "bbox": "[10, 20, 110, 220]", "take_id": 7 * (index % 3)}
        rows[str(index)] = {**row, "sentence": f"thing {index}"}
    write_json(folder / "val_expressions.json", rows)


def write_tallyqa(folder: Path) -> None:
    rows = []
    for number, (index, question) in enumerate(asked("count")):
        name = f"VG_100K{'_2' * (number % 2)}/{index}.jpg"
        save_picture(folder / name, index)
        row = {"question_id": number, "question": question.text, "image": name, "image_id": index}
        rows.append({**row, "answer": NUMBERS.index(question.answer), "issimple": number % 3 > 0})
    write_json(folder / "test.json", rows)


def write_ai2d(folder: Path) -> None:
    for index, question in asked("count", count=4):
        save_picture(folder / "images" / f"{index}.png", index)
        place = folder / "questions" / f"{index}.png.json"
        known = json.loads(place.read_text())["questions"] if place.exists() else {}
        number = NUMBERS.index(question.answer)
        entry = {"questionId": f"{index}-q", "answerTexts": [*"0123"], "correctAnswer": number % 4}
        questions = {**known, question.text: entry}
        write_json(place, {"imageName": f"{index}.png", "questions": questions})
    (folder / "ai2d_test_ids.csv").write_text("0\n1\n")


def write_textvqa(folder: Path) -> None:
    data, texts = [], []
    for number, (index, question) in enumerate(asked("colour", "shape")):
        save_picture(folder / "train_images" / f"{index:016x}.jpg", index)
        row = {"question_id": 34600 + number, "image_id": f"{index:016x}"}
        answers = [question.answer] * 8 + ["other"] * 2
        data.append({**row, "question": question.text, "answers": answers, "set_name": "val"})
        texts.append({"text": f"{question.text}\nReference OCR token: stop, 12"})
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": data, "dataset_type": "val"})
    write_lines(folder / "textvqa_val_v051_ocr.jsonl", texts)


def write_vqav2(folder: Path) -> None:
    questions, annotations = [], []
    for number, (index, question) in enumerate(asked("colour", "exists")):
        save_picture(folder / "val2014" / f"COCO_val2014_{index:012d}.jpg", index)
        row = {"question_id": number, "image_id": index}
        questions.append({**row, "question": question.text})
        answers = [{"answer": question.answer, "answer_id": n + 1} for n in range(10)]
        kind = "yes/no" if question.kind == "exists" else "other"
        row |= {"answer_type": kind, "question_type": "what", "answers": answers}
        annotations.append({**row, "multiple_choice_answer": question.answer})
    write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})


# Python 2 wrote RefCOCO's files; its protocols were 0 to 2.
WRITERS = {
    "vsr": write_vsr,
    "pope": write_pope,
    "gqa": write_gqa,
    "vizwiz": write_vizwiz,
    "refcoco+": _refer("refcoco+", "refs(unc).p", 0),
    "refcoco": _refer("refcoco", "refs(unc).p", 1),
    "refcocog": _refer("refcocog", "refs(umd).p", 2),
    "ocid-ref": write_ocid_ref,
    "tallyqa": write_tallyqa,
    "ai2d": write_ai2d,
    "textvqa": write_textvqa,
    "vqav2": write_vqav2,
}


def write_all(root: Path) -> Path:
    """A folder for each task that has its own form."""
    for task, write in WRITERS.items():
        write(root / task)
    return root


def read(task: str, folder: Path, **options: Any) -> list[Example]:
    """The examples of a task in ``folder``; ``options`` are those of ``Source``."""
    return list(TASKS[task].read(Source(str(folder), **options)))
