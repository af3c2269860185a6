"""The folder that a reader works in: small models and data under the names that the pages use."""

import json
import os
import shutil
import sys
from pathlib import Path

import action_models
import openvla_tiny
from evals import tiny_words
from evals.small_data import write_all
from mlx_vlm.models.moxin.config import STATISTICS_FILE
from moxin_tiny import CHECKPOINT, DEMO
from PIL import Image
from source_checkpoints import HUB, NATIVE, write_ominix

from pages.commands import ROOT

_CAMERAS = ("camera", "front", "wrist", "left", "right")
# Pages on which DATA is about actions, and on which `moxin` knows the words of the tasks.
ACTION_PAGES = ("docs/actions.md",)
TASK_PAGES = ("docs/evaluations.md",)
# Commands that make `moxin` and the other one, which takes its place on these pages.
CONVERSIONS = [
    f"python -m mlx_vlm convert --hf-path {source} --mlx-path {name} -q --q-bits 8"
    for source, name in (("tests/moxin_tiny/checkpoint", "moxin"), ("materials/hf", "words"))
]


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_openvla(directory: Path) -> None:
    """OpenVLA-tiny, with the name of one of OpenVLA's data sets."""
    shutil.copytree(openvla_tiny.CHECKPOINT, directory)
    file = directory / STATISTICS_FILE
    (statistics,) = json.loads(file.read_text(encoding="utf-8")).values()
    file.write_text(json.dumps({"bridge_orig": statistics}), encoding="utf-8")


def write_materials(folder: Path) -> None:
    """Write the small models and data that the pages use; ``CONVERSIONS`` make the rest."""
    place = folder / "materials"
    place.mkdir()
    tiny_words.write_checkpoint(place / "hf")
    write_ominix(place / "ominix")
    _write_openvla(place / "openvla")
    action_models.write_checkpoint("oft", place / "oft")
    shutil.copytree(NATIVE, place / "native")
    shutil.copytree(HUB, place / "hub")
    shutil.copytree(ROOT / "conversion", folder / "conversion")
    tests = folder / "tests"
    shutil.copytree(CHECKPOINT, tests / "moxin_tiny" / "checkpoint")
    shutil.copy(DEMO, tests / "moxin_tiny")
    picture = Image.open(DEMO).convert("RGB")
    picture.save(folder / "photo.jpg")
    for name in _CAMERAS:
        picture.save(folder / f"{name}.png")
    write_all(folder / "DATA")
    shutil.copy(DEMO, folder / "DATA")
    question = {"role": "user", "content": "Where is the star?"}
    answer = {"role": "assistant", "content": "top right"}
    row = {"images": [DEMO.name], "messages": [question, answer]}
    _write_lines(folder / "DATA" / "train.jsonl", [row] * 4)
    (folder / "LMDATA").mkdir()
    line = {"text": "A large red circle and a small blue star. "}
    _write_lines(folder / "LMDATA" / "train.jsonl", [line] * 20000)
    (folder / ".venv").symlink_to(sys.prefix)


def write_action_data(folder: Path) -> None:
    """Replace the rows of ``DATA`` by steps of a demonstration."""
    rows = [
        {"image": DEMO.name, "instruction": "pick up the red cup", "action": [step / 10] * 7}
        for step in range(4)
    ]
    _write_lines(folder / "DATA" / "train.jsonl", rows)


def copy_folder(start: Path, folder: Path, page: str) -> None:
    """A reader's folder for one page."""
    shutil.copytree(start, folder, symlinks=True, copy_function=os.link)
    if page in TASK_PAGES:
        shutil.rmtree(folder / "moxin")
        (folder / "words").rename(folder / "moxin")
    if page in ACTION_PAGES:
        (folder / "DATA" / "train.jsonl").unlink()
        write_action_data(folder)
