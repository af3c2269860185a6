"""The small action models of ``reference/actions``, written out as checkpoints."""

import functools
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image
from support import IMAGES, REFERENCE
from torch_files import tensor, write_pt

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
    """Give every id below ``<PAD>`` a piece, as tokenizers do; no text contains these."""
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


# Prefix in an HF checkpoint -> part and prefix in a native training run's.
NATIVE_PREFIXES = {
    "vision_backbone.featurizer.": ("vision_backbone", "dino_featurizer."),
    "vision_backbone.fused_featurizer.": ("vision_backbone", "siglip_featurizer."),
    "projector.fc1.": ("projector", "projector.0."),
    "projector.fc2.": ("projector", "projector.2."),
    "projector.fc3.": ("projector", "projector.4."),
    "language_model.": ("llm_backbone", "llm."),
}


def write_native_run(directory: Path) -> tuple[Path, Path]:
    """OpenVLA as a native training run, and its language model's config and tokenizer."""
    run, llm = directory / "run", directory / "llm"
    run.mkdir()
    llm.mkdir()
    parts: dict[str, dict[str, Any]] = {}
    for name, value in weights("openvla").items():
        prefix = next(prefix for prefix in NATIVE_PREFIXES if name.startswith(prefix))
        part, native = NATIVE_PREFIXES[prefix]
        native_name = (native + name[len(prefix) :]).replace(".scale_factor", ".gamma")
        parts.setdefault(part, {})[native_name] = tensor(np.array(value.view(mx.uint16)))
    write_pt(run / "checkpoints" / "latest-checkpoint.pt", {"model": parts})
    config = json.loads((ACTIONS / "openvla" / "config.json").read_text(encoding="utf-8"))
    vla = {"vla": {"base_vlm": "prism-dinosiglip-224px+7b"}}
    (run / "config.json").write_text(json.dumps(vla), encoding="utf-8")
    statistics = json.dumps(config["norm_stats"])
    (run / "dataset_statistics.json").write_text(statistics, encoding="utf-8")
    eps = goldens("openvla")["native"]["rms_norm_eps"]
    text_config = {**config["text_config"], "vocab_size": PAD_ID, "rms_norm_eps": eps}
    (llm / "config.json").write_text(json.dumps(text_config), encoding="utf-8")
    tokenizer = json.loads((ACTIONS / "openvla" / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["id"] != PAD_ID]
    (llm / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    fill_vocabulary(llm / "tokenizer.json")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (llm / "tokenizer_config.json").write_text(json.dumps(special), encoding="utf-8")
    return run, llm
