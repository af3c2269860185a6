"""A data set's two checkpoints, HF-converted and native, to and from timm's names."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]

NATIVE_CHECKPOINT = "native/checkpoints/latest-checkpoint.pt"
HF_PREFIXES = {
    "dino": "vision_backbone.featurizer.",
    "siglip": "vision_backbone.fused_featurizer.",
    "projector": "projector.",
    "language_model": "language_model.",
}
# Prismatic's nn.Sequential: the linear layers at 0, 2 and 4, activations between them.
NATIVE_PROJECTOR = {"fc1": "projector.0", "fc2": "projector.2", "fc3": "projector.4"}
PROCESSORS = (
    "hf/preprocessor_config.json",
    "preprocessor_config.letterbox.json",
    "preprocessor_config.resize-crop.json",
)
SHARDS = 3


@dataclass
class Weights:
    """State dicts under timm's, transformers' and the projector's own names."""

    dino: State
    siglip: State
    projector: State
    language_model: State
    text_config: dict[str, Any]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_hf(directory: Path) -> Weights:
    """The HF-converted checkpoint of the data set in ``directory``."""
    state: State = {}
    for path in sorted((directory / "hf").glob("*.safetensors")):
        state.update(load_file(path))
    parts: dict[str, State] = {}
    for part, prefix in HF_PREFIXES.items():
        parts[part] = {
            name.removeprefix(prefix).replace("scale_factor", "gamma"): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
    if sum(map(len, parts.values())) != len(state):
        raise ValueError(f"{directory / 'hf'}: tensors other than {sorted(HF_PREFIXES.values())}")
    return Weights(**parts, text_config=read_json(directory / "hf/config.json")["text_config"])


def read_native(directory: Path) -> Weights:
    """The native checkpoint of the data set in ``directory``, with its hub files."""
    checkpoint = torch.load(directory / NATIVE_CHECKPOINT, weights_only=True)["model"]
    projector = {}
    for name, native in NATIVE_PROJECTOR.items():
        for kind in ("weight", "bias"):
            projector[f"{name}.{kind}"] = checkpoint["projector"][f"{native}.{kind}"]
    return Weights(
        dino=load_file(directory / "hub/dino.safetensors"),
        siglip=load_file(directory / "hub/siglip.safetensors"),
        projector=projector,
        language_model={
            name.removeprefix("llm."): value for name, value in checkpoint["llm_backbone"].items()
        },
        text_config=read_json(directory / "hub/llm/config.json"),
    )


def write_native(directory: Path, weights: Weights, template: Path) -> None:
    """Write ``native/`` and ``hub/``; tokenizer and run config come from ``template``."""
    (directory / NATIVE_CHECKPOINT).parent.mkdir(parents=True)
    shutil.copy(template / "native/config.json", directory / "native")
    projector = {}
    for name, value in weights.projector.items():
        layer, kind = name.split(".")
        projector[f"{NATIVE_PROJECTOR[layer]}.{kind}"] = value
    llm = {f"llm.{name}": value for name, value in weights.language_model.items()}
    model = {"projector": projector, "llm_backbone": llm}
    torch.save({"model": model}, directory / NATIVE_CHECKPOINT)
    shutil.copytree(template / "hub/llm", directory / "hub/llm")
    write_json(directory / "hub/llm/config.json", weights.text_config)
    save_file(weights.dino, directory / "hub/dino.safetensors", {"format": "pt"})
    save_file(weights.siglip, directory / "hub/siglip.safetensors", {"format": "pt"})


def write_hf(directory: Path, weights: Weights, image_size: int, template: Path) -> None:
    """Write ``hf/`` in bfloat16, and the processors of the other resize strategies.

    Tokenizer and remaining settings come from ``template``.
    """
    tensors = ("*.safetensors", "*.index.json")
    shutil.copytree(template / "hf", directory / "hf", ignore=shutil.ignore_patterns(*tensors))
    config = read_json(directory / "hf/config.json")
    config["image_sizes"] = [image_size, image_size]
    config["text_config"] = weights.text_config
    write_json(directory / "hf/config.json", config)
    square = [image_size, image_size]
    for path in PROCESSORS:
        processor = read_json(template / path)
        processor["input_sizes"] = [[3, *square]] * 2
        for resize, crop in zip(processor["tvf_resize_params"], processor["tvf_crop_params"]):
            resize["size"] = square if isinstance(resize["size"], list) else image_size
            crop["output_size"] = square
        write_json(directory / path, processor)
    state = {}
    for part, prefix in HF_PREFIXES.items():
        for name, value in getattr(weights, part).items():
            name = name.replace("gamma", "scale_factor")
            state[prefix + name] = value.to(torch.bfloat16).contiguous()
    # Shards are filled in order of size: a limit of a little over a third of the bytes gives three.
    size = sum(value.nbytes for value in state.values())
    save_torch_state_dict(state, directory / "hf", max_shard_size=int(size / (SHARDS - 0.2)))
