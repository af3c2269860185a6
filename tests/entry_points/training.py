"""``mlx_vlm.train`` as a process on a few pictures, and a model's answers after it."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_vlm import apply_chat_template, generate
from support import PROMPTS, image_path, run_module

PROMPT = PROMPTS[0]
LEARNED = {"photo": "Yes", "tall": "No"}
REPORT_STEPS = 10


def write_rows(folder: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Make ``folder`` with ``train.jsonl``, mlx-vlm's own format."""
    folder.mkdir(exist_ok=True)
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    return folder


def conversations() -> list[dict[str, Any]]:
    """A row of supervised training for each picture of ``LEARNED``."""
    return [{"images": [image_path(name)], "messages": turns(name)} for name in LEARNED]


def turns(name: str, answer: str | None = None) -> list[dict[str, str]]:
    """The question about a picture and ``answer``, by default the one to be learned."""
    answer = LEARNED[name] if answer is None else answer
    return [
        {"role": "user", "content": PROMPT["message"]},
        {"role": "assistant", "content": answer},
    ]


def train(model: Path, output: Path, *options: str | Path) -> list[dict[str, float]]:
    """The numbers that ``python -m mlx_vlm.train`` reports, by name, every ten steps."""
    environment = {"HF_DATASETS_CACHE": str(output.parent / "cache")}
    # As the loss of two rows vanishes, Adam's steps grow and undo what was learned; SGD's shrink.
    settings = ["--optimizer", "sgd", "--batch-size", "2", "--steps-per-report", REPORT_STEPS]
    if "--full-finetune" not in options:
        settings += ["--lora-rank", "8", "--lora-alpha", "8"]
    settings += ["--output-path", output]
    result = run_module("mlx_vlm.train", "--model", model, *settings, *options, env=environment)
    assert result.returncode == 0, result.stderr
    return [
        {name: float(value.replace(",", "")) for name, value in re.findall(r"(\w+)=(\S+?),?\s", r)}
        for r in result.stdout.split("Training (iteration ")[1:]
    ]


def losses(reports: list[dict[str, float]]) -> list[float]:
    return [report["train_loss"] for report in reports]


def answers(model: nn.Module, processor: Any) -> dict[str, str]:
    """The answer about each picture of ``LEARNED``."""
    return {
        name: generate(model, processor, PROMPT["prompt"], [image_path(name)], max_tokens=8).text
        for name in LEARNED
    }


def log_probability(model: nn.Module, processor: Any, name: str, answer: str) -> float:
    """Log-probability of ``answer`` and its end token after the question about a picture."""
    question, conversation = turns(name)[:1], turns(name, answer)
    inputs = [
        processor(
            text=apply_chat_template(
                processor, model.config, messages, add_generation_prompt=is_open, num_images=1
            ),
            images=[image_path(name)],
            return_tensors="mlx",
        )
        for messages, is_open in ((question, True), (conversation, False))
    ]
    ids = inputs[1]["input_ids"]
    start = inputs[0]["input_ids"].shape[1]
    logits = model(ids[:, :-1], inputs[1]["pixel_values"]).logits
    loss = nn.losses.cross_entropy(logits[:, start - 1 :], ids[:, start:], reduction="sum")
    return -loss.item()
