"""The small action models of ``reference/actions``, written out as checkpoints."""

import functools
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image
from support import IMAGES, REFERENCE

ACTIONS = REFERENCE / "actions"
VOCABULARY, PAD_ID = 32064, 32000
# Tolerances of the float32 comparison; reference/actions/README.md says where they come from.
HIDDEN_TOLERANCE = 4e-4
LOGITS_TOLERANCE = {"openvla": 5e-4, "oft": 4e-3, "moxin": 4e-3}
ID_MARGIN = {"openvla": 2e-3, "oft": 2e-3, "moxin": 4e-3}


@functools.cache
def goldens(name: str) -> dict[str, Any]:
    return json.loads((ACTIONS / name / "goldens.json").read_text(encoding="utf-8"))


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(ACTIONS / name / "goldens.npz"))


def weights(name: str) -> dict[str, mx.array]:
    """All tensors under their names in an HF checkpoint; unused rows of the vocabulary are 0."""
    stored = np.load(ACTIONS / name / "weights.npz")
    tensors = {}
    for key in stored.files:
        if key.endswith("/rows"):
            continue
        bits = stored[key]
        if f"{key}/rows" in stored.files:
            rows, bits = bits, np.zeros((VOCABULARY, bits.shape[1]), np.uint16)
            bits[stored[f"{key}/rows"]] = rows
        tensors[key] = mx.array(bits).view(mx.bfloat16)
    return tensors


def fill_vocabulary(path: Path) -> None:
    """Give every id below ``<PAD>`` a piece, as tokenizers have; no text contains them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    missing = sorted({*range(PAD_ID)} - {*vocabulary.values()})
    vocabulary.update((chr(0xF0000 + token), token) for token in missing)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_checkpoint(name: str, directory: Path) -> Path:
    """The model as an HF checkpoint in the new ``directory``."""
    directory.mkdir()
    for path in (ACTIONS / name).iterdir():
        if path.suffix != ".npz" and path.name != "goldens.json":
            (directory / path.name).write_bytes(path.read_bytes())
    fill_vocabulary(directory / "tokenizer.json")
    mx.save_safetensors(str(directory / "model.safetensors"), weights(name), {"format": "pt"})
    return directory


@functools.cache
def picture(name: str) -> Image.Image:
    """A picture of the goldens, such as ``photo.policy224.crop``."""
    from mlx_vlm_moxin.actions.pictures import center_crop, resize_for_policy

    stem, *steps = name.split(".")
    image = Image.open(IMAGES / f"{stem}.png").convert("RGB")
    for step in steps:
        image = {"policy224": resize_for_policy, "crop": center_crop}[step](image)
    return image
