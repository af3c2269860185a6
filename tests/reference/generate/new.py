"""A new data set: random weights in every layout, with their goldens."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .bf16 import bf16_errors
from .goldens import compute
from .layouts import Weights, read_json, write_hf, write_json, write_native
from .model import (
    DINO,
    SIGLIP,
    Projector,
    ReferenceModel,
    create_language_model,
    create_tower,
)
from .random_weights import fill

SIZES = ("px", "dino", "dino_hub_grid", "siglip", "text")
MAX_DRAWS = 100
# Four times the tolerance on logits: no implementation within it can flip a token.
MIN_MARGIN = 2e-3


def merge_sizes(known: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """``known`` sizes updated with ``sizes``.

    Raises:
        ValueError: naming a size that is unknown or not a positive whole number.
    """
    merged = dict(known)
    for name, value in sizes.items():
        if name not in known:
            raise ValueError(f"--sizes: unknown {name!r}; known: {', '.join(known)}")
        if isinstance(known[name], dict) and isinstance(value, dict):
            value = merge_sizes(known[name], value)
        elif type(value) is not type(known[name]) or value < 1:
            kind = "an object" if isinstance(known[name], dict) else "a positive whole number"
            raise ValueError(f"--sizes: {name} must be {kind}, got {value!r}")
        merged[name] = value
    return merged


def check_sizes(sizes: dict[str, Any]) -> None:
    """Raises ValueError for sizes that the architecture cannot have."""
    text, towers = sizes["text"], (sizes["dino"], sizes["siglip"])
    requirements = {
        "px must be a multiple of 14": sizes["px"] % 14 == 0,
        "embed_dim must be a multiple of 16": all(t["embed_dim"] % 16 == 0 for t in towers),
        "depth must be at least 2": all(tower["depth"] > 1 for tower in towers),
        "head_dim must be even": text["head_dim"] % 2 == 0,
        "num_attention_heads must be a multiple of num_key_value_heads, and hidden_size of it": (
            text["num_attention_heads"] % text["num_key_value_heads"] == 0
            and text["hidden_size"] % text["num_attention_heads"] == 0
        ),
    }
    for requirement, met in requirements.items():
        if not met:
            raise ValueError(f"--sizes: {requirement}")


def draw_weights(generator: torch.Generator, spec: dict[str, Any], text: dict) -> Weights:
    """Random weights as a native checkpoint and timm's hub files hold them."""
    hub_size = 14 * spec["dino_hub_grid"]
    dino = create_tower(DINO, spec["dino"]["embed_dim"], spec["dino"]["depth"], hub_size)
    siglip = create_tower(SIGLIP, spec["siglip"]["embed_dim"], spec["siglip"]["depth"], spec["px"])
    projector = Projector(dino.embed_dim + siglip.embed_dim, text["hidden_size"])
    padded = 64 * (spec["vocab"] // 64 + 1)
    language_model = create_language_model(text, padded)
    states = [
        fill(module.state_dict(), generator) for module in (dino, siglip, projector, language_model)
    ]
    return Weights(*states, text_config=text)


def rejection(answers: dict[str, dict[str, list]], eos_token_id: int) -> str | None:
    """Why these answers would be poor goldens; None if they are good."""
    flat = [answer for images in answers.values() for image in images.values() for answer in image]
    if min(answer["min_margin"] for answer in flat) < MIN_MARGIN:
        return "two tokens nearly tie"
    if any(len(set(answer["tokens"])) <= len(answer["tokens"]) / 2 for answer in flat):
        return "an answer repeats itself"
    if not any(answer["tokens"][-1] == eos_token_id for answer in flat):
        return "no answer ends by itself"
    for prompt in zip(*answers["hf"].values()):
        if len({tuple(answer["tokens"]) for answer in prompt}) < len(prompt):
            return "two pictures get the same answer"
    return None


def write_data_set(seed: int, out: Path, template: Path, sizes: dict[str, Any]) -> None:
    """Write a data set into ``out``, a folder that must not exist.

    Tokenizer, messages and settings come from ``template``. Weights are drawn until the
    answers are good goldens (``rejection``).

    Raises:
        ValueError, FileExistsError: naming what cannot be used.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; give --out a folder that does not")
    like = read_json(template / "goldens.json")
    merged = merge_sizes({name: like["spec"][name] for name in SIZES}, sizes)
    check_sizes(merged)
    like["spec"] = {**like["spec"], **merged, "seed": seed}
    size = like["spec"]["px"]
    hub_text = {**read_json(template / "hub/llm/config.json"), **like["spec"]["text"]}
    hf_text = {**read_json(template / "hf/config.json")["text_config"], **like["spec"]["text"]}
    generator = torch.Generator().manual_seed(seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(MAX_DRAWS):
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            directory = Path(folder) / out.name
            native = draw_weights(generator, like["spec"], hub_text)
            write_native(directory, native, template)
            resampled = ReferenceModel(native, size)
            towers = {name: getattr(resampled, name).state_dict() for name in ("dino", "siglip")}
            hf = Weights(
                **towers,
                projector=native.projector,
                language_model=native.language_model,
                text_config=hf_text,
            )
            write_hf(directory, hf, size, template)
            arrays, goldens = compute(directory, like)
            reason = rejection(goldens["generate"], goldens["eos_token_id"])
            if reason:
                print(f"another draw: {reason}")
                continue
            np.savez_compressed(directory / "goldens.npz", **arrays)
            write_json(directory / "goldens.json", goldens)
            write_json(directory / "bf16_errors.json", bf16_errors(directory, arrays, goldens))
            directory.rename(out)
            print(f"wrote {out}")
            return
    raise ValueError(f"seed {seed}: no good answers in {MAX_DRAWS} draws; try another")
