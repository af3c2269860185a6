"""The goldens of a data set: arrays, prompts, tokenizer cases and greedy answers."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer

from .layouts import read_hf, read_native
from .model import ReferenceModel
from .pixels import (
    RESIZE_STRATEGIES,
    hf_pixels,
    hf_pixels_vertical_first,
    native_pixels,
    processor_config,
)

IMAGES = Path(__file__).parent.parent / "images"
PACKAGES = ("torch", "timm", "transformers", "tokenizers", "pillow")
# The few (run, picture, prompt) whose logits are kept at every position.
FULL_LOGITS = (("hf", "photo", 0), ("hf", "gray", 2), ("native", "photo", 0))
NATIVE_IMAGES = ("photo", "tall")
NATIVE_PIXELS = ("photo", "tall", "tiny")

Arrays = dict[str, np.ndarray]


def open_image(name: str) -> Image.Image:
    return Image.open(IMAGES / f"{name}.png")


def prompt_text(message: str) -> str:
    """Prismatic's "pure" prompt of one user turn."""
    return f"In: {message.replace('<image>', '').strip()}\nOut:"


def pixel_arrays(directory: Path, names: list[str], model: ReferenceModel, size: int) -> Arrays:
    """Both pipelines' pixels of every picture and resize strategy."""
    arrays = {}
    towers = [model.dino, model.siglip]
    for strategy in RESIZE_STRATEGIES:
        config = processor_config(directory, strategy)
        for name in names:
            arrays[f"pixels/{strategy}/{name}"] = hf_pixels(open_image(name), config)
        if strategy != "letterbox":
            swapped = hf_pixels_vertical_first(open_image("tall"), config)
            arrays[f"pixels_pillow13/{strategy}/tall"] = swapped
        if strategy != "resize-crop":
            for name in NATIVE_PIXELS:
                pixels = native_pixels(open_image(name), strategy, towers, size)
                arrays[f"pixels_native/{strategy}/{name}"] = pixels
    return {name: value.numpy() for name, value in arrays.items()}


def outputs(
    model: ReferenceModel, pixels: Arrays, prompts: list[list[int]], run: str
) -> tuple[Arrays, dict[str, list[torch.Tensor]]]:
    """Features and logits per picture, and the input embeddings per picture and prompt."""
    arrays, embeds = {}, {}
    for name, value in pixels.items():
        features = model.features(torch.from_numpy(value))
        for kind, output in features.items():
            arrays[f"{run}/{kind}/{name}"] = output
        embeds[name] = [model.embed(ids, features["projector"]) for ids in prompts]
        for index, embed in enumerate(embeds[name]):
            logits = model.logits(embed)
            arrays[f"{run}/logits_last/{name}/{index}"] = logits[-1]
            if (run, name, index) in FULL_LOGITS:
                arrays[f"{run}/logits/{name}/{index}"] = logits
    return {name: value.float().numpy() for name, value in arrays.items()}, embeds


def text_goldens(tokenizer: Any, messages: list[str], texts: list[str]) -> dict[str, Any]:
    """Token ids of the prompts and of the tokenizer cases."""
    prompts = [{"message": message, "prompt": prompt_text(message)} for message in messages]
    for prompt in prompts:
        prompt["input_ids"] = tokenizer(prompt["prompt"])["input_ids"]
    cases = []
    for text in texts:
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        cases.append({"text": text, "ids": tokenizer(text)["input_ids"], "ids_no_special": plain})
    return {"prompts": prompts, "tokenize": cases}


@torch.inference_mode()
def compute(directory: Path, like: dict[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """The contents of goldens.npz and goldens.json, computed in float32.

    Args:
        directory: a data set with its checkpoints and processor configurations.
        like: a goldens.json, for its sizes, picture names, messages and tokenizer cases.
    """
    size = like["spec"]["px"]
    tokenizer = AutoTokenizer.from_pretrained(directory / "hf")
    texts = text_goldens(
        tokenizer,
        [prompt["message"] for prompt in like["prompts"]],
        [case["text"] for case in like["tokenize"]],
    )
    models = {
        "hf": ReferenceModel(read_hf(directory), size),
        "native": ReferenceModel(read_native(directory), size),
    }
    arrays = pixel_arrays(directory, like["images"], models["native"], size)
    strategy = like["spec"]["strategy"]
    pixels = {
        "hf": {name: arrays[f"pixels/{strategy}/{name}"] for name in like["images"]},
        "native": {name: arrays[f"pixels_native/{strategy}/{name}"] for name in NATIVE_IMAGES},
    }
    prompts = [prompt["input_ids"] for prompt in texts["prompts"]]
    answers: dict[str, dict[str, list]] = {}
    for run, model in models.items():
        run_arrays, embeds = outputs(model, pixels[run], prompts, run)
        arrays.update(run_arrays)
        answers[run] = {name: [] for name in embeds}
        for name, image_embeds in embeds.items():
            for index, embed in enumerate(image_embeds):
                tokens, margin = model.answer(embed, like["new_tokens"], like["eos_token_id"])
                text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
                answer = {"prompt": index, "tokens": tokens, "text": text}
                answers[run][name].append({**answer, "min_margin": round(margin, 5)})
    text_only = models["hf"].logits(models["hf"].embed(prompts[0]))
    arrays["hf/text_only_logits/0"] = text_only.numpy()
    arrays["native/dino_pos_embed"] = models["native"].dino.pos_embed.numpy()
    versions = {package: version(package) for package in PACKAGES}
    num_patches = models["hf"].dino.patch_embed.num_patches
    computed = {**texts, "generate": answers, "versions": versions, "num_patches": num_patches}
    return arrays, {**like, **computed}
