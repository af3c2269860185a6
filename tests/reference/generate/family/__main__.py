"""Command line: ``python -m generate.family OUT`` writes all members into a new folder."""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from ..goldens import open_image
from ..layouts import write_json
from ..pixels import hf_pixels, native_pixels
from ..random_weights import fill
from .layouts import preprocessor, write_hf, write_native
from .model import (
    Projector,
    ReferenceModel,
    Weights,
    create_language_model,
    create_tower,
    projector_widths,
)
from .specs import MEMBERS, Member

TEMPLATE = Path(__file__).parents[2] / "tiny28"
IMAGES = ("photo", "tall")
MESSAGES = (["What is shown?"], ["Is it red?", "Yes.", "And <image> what else? "])
NEW_TOKENS, EOS, VOCAB = 16, 2, 576
NATIVE_EPS, HF_EPS = 1e-5, 1e-6
# Step of the positions whose logits are kept.
LOGITS_STEP = 8
MIN_MARGIN, MAX_DRAWS = 2e-3, 50
SYSTEM = {
    "vicuna": "A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions. ",
    "llama2-chat": "<<SYS>\nYou are a helpful language and vision assistant. You are able to "
    "understand the visual content that the user provides, and assist the user with a variety "
    "of tasks using natural language.\n<</SYS>>\n\n",
}
TURN = {
    "pure": "In: {}\nOut: ",
    "vicuna": "USER: {} ASSISTANT: ",
    "llama2-chat": "[INST] {} [/INST] ",
    "mistral-instruct": "[INST] {} [/INST] ",
}


def prompt_text(kind: str, messages: list[str]) -> str:
    """The prompt after ``messages``, user's and assistant's in turns."""
    text = ""
    for index, message in enumerate(messages):
        message = message.replace("<image>", "").strip()
        if index % 2:
            text += message + "</s>"
        elif index == 0 and kind == "llama2-chat":
            text += TURN[kind].format(SYSTEM[kind] + message)
        else:
            text += (SYSTEM.get(kind, "") if index == 0 else "") + TURN[kind].format(message)
    return text.rstrip()


def draw(member: Member, generator: torch.Generator) -> Weights:
    """Random weights as a native checkpoint and its tower files hold them."""
    towers = []
    for tower in member.towers:
        patch = 16 if tower.name == "in1k" else 14
        size = patch * tower.hub_grid if tower.hub_grid else member.px
        state = fill(create_tower(tower, size, None).state_dict(), generator)
        for name in ("norm_pre.weight", "norm_pre.bias"):
            # As small as other embeddings, so that the contributions of the blocks are visible.
            if name in state:
                state[name] = (state[name] * 0.02).to(torch.bfloat16)
        towers.append(state)
    vision, hidden = sum(tower.width for tower in member.towers), member.text["hidden_size"]
    widths = projector_widths(member.arch_specifier, vision, hidden)
    projector = Projector(widths).state_dict()
    # Gains are set for three layers; the others have those of the first or the last.
    names = {1: {"fc1": "only"}, 2: {"fc1": "fc1", "fc2": "fc3"}}.get(len(widths) - 1, {})
    renamed = {f"{names.get(k[:3], k[:3])}{k[3:]}": value for k, value in projector.items()}
    filled = fill(renamed, generator).values()
    language_model = create_language_model(member, VOCAB, NATIVE_EPS)
    return Weights(
        towers, dict(zip(projector, filled)), fill(language_model.state_dict(), generator)
    )


def outputs(model: ReferenceModel, pixels: dict, prompts: list, step: int) -> tuple[dict, list]:
    """Arrays and greedy answers; every ``step``-th pixel and patch is kept."""
    arrays, answers = {}, []
    for name, value in pixels.items():
        arrays[f"pixels/{name}"] = value[:, ::step, ::step]
        features = model.features(value)
        visual = model.projector(features)[0]
        arrays[f"features/{name}"] = features[0, ::step]
        arrays[f"projector/{name}"] = visual[::step]
        for index, prompt in enumerate(prompts):
            embeds = model.embed(prompt["input_ids"], visual)
            logits = model.logits(embeds)
            arrays[f"logits_last/{name}/{index}"] = logits[-1]
            if (name, index) == (IMAGES[0], 0):
                arrays[f"logits/{name}/{index}"] = logits[::LOGITS_STEP]
            tokens, margin = model.answer(embeds, NEW_TOKENS, EOS)
            answers.append(
                {"image": name, "prompt": index, "tokens": tokens, "min_margin": round(margin, 5)}
            )
    return {name: value.numpy() for name, value in arrays.items()}, answers


def compute(member: Member, weights: Weights, directory: Path) -> tuple[dict, dict]:
    """Arrays and JSON of both forms; writes the HF-converted one."""
    tokenizer = AutoTokenizer.from_pretrained(TEMPLATE / "hf")
    prompts = [
        {"messages": messages, "prompt": prompt_text(member.prompt, messages)}
        for messages in MESSAGES
    ]
    for prompt in prompts:
        prompt["input_ids"] = tokenizer(prompt["prompt"])["input_ids"]
    images = {name: open_image(name) for name in IMAGES}
    arrays, answers = {}, {}
    native = ReferenceModel(member, weights, [t.native_act for t in member.towers], NATIVE_EPS)
    towers = [*native.towers]
    strategy = member.image_resize_strategy
    pixels = {k: native_pixels(v, strategy, towers, member.px) for k, v in images.items()}
    runs = {"native": (native, pixels)}
    if member.has_hf:
        write_hf(directory, member, weights, towers, TEMPLATE)
        states = [tower.state_dict() for tower in towers]
        rounded = Weights(
            *([{k: v.bfloat16() for k, v in state.items()} for state in part] for part in [states]),
            weights.projector,
            weights.language_model,
        )
        hf = ReferenceModel(member, rounded, [t.hf_act for t in member.towers], HF_EPS)
        config = preprocessor(member, towers)
        runs["hf"] = (hf, {name: hf_pixels(image, config) for name, image in images.items()})
    for run, (model, pixels) in runs.items():
        found, answers[run] = outputs(model, pixels, prompts, member.sample)
        arrays |= {f"{run}/{name}": value for name, value in found.items()}
    return arrays, {
        "model_id": member.model_id,
        "px": member.px,
        "sample": member.sample,
        "logits_step": LOGITS_STEP,
        "towers": [tower.name for tower in member.towers],
        "prompts": prompts,
        "generate": answers,
    }


def is_good(answers: dict[str, list]) -> bool:
    """Whether no token nearly ties, and the pictures get different answers."""
    flat = [answer for run in answers.values() for answer in run]
    if min(answer["min_margin"] for answer in flat) < MIN_MARGIN:
        return False
    half = len(MESSAGES)
    return all(
        run[index]["tokens"] != run[index + half]["tokens"]
        for run in answers.values()
        for index in range(half)
    )


@torch.inference_mode()
def write_member(name: str, out: Path) -> None:
    """Write one member, with random weights drawn until its answers are good goldens."""
    member = MEMBERS[name]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    for _ in range(MAX_DRAWS):
        weights = draw(member, generator)
        with tempfile.TemporaryDirectory(dir=out) as folder:
            directory = Path(folder) / name
            write_native(directory, member, weights, TEMPLATE)
            arrays, goldens = compute(member, weights, directory)
            if not is_good(goldens["generate"]):
                continue
            np.savez_compressed(directory / "goldens.npz", **arrays)
            write_json(directory / "goldens.json", goldens)
            directory.rename(out / name)
            print(f"wrote {out / name}")
            return
    raise ValueError(f"{name}: no good answers in {MAX_DRAWS} draws")


def main() -> None:
    parser = argparse.ArgumentParser("python -m generate.family", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the members; made if need be")
    parser.add_argument("--only", choices=MEMBERS, nargs="+", default=[*MEMBERS])
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        write_member(name, arguments.out)


if __name__ == "__main__":
    main()
