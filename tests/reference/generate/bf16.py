"""Deviation of PyTorch's bfloat16 outputs from its float32 outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .check import RELATIVE, deviation, kind_of
from .goldens import Arrays, outputs
from .layouts import read_hf
from .model import ReferenceModel

KINDS = (*RELATIVE, "logits_last")


def summary(deviations: list[np.ndarray]) -> dict[str, float]:
    """Root mean square and maximum, to four significant digits."""
    values = np.concatenate([value.ravel() for value in deviations])
    numbers = {"rms": np.sqrt(np.mean(values**2)), "max": values.max()}
    return {name: float(f"{value:.4g}") for name, value in numbers.items()}


@torch.inference_mode()
def bf16_errors(directory: Path, stored: Arrays, goldens: dict[str, Any]) -> dict[str, Any]:
    """Deviations of the HF-converted checkpoint's outputs from ``stored``.

    Weights and activations are bfloat16, on the CPU. Features are in standard deviations
    of the float32 array, ``logits_last`` is absolute; ``overall`` is over all pictures and
    prompts, ``each`` has the names of goldens.npz without ``hf/``.
    """
    spec = goldens["spec"]
    model = ReferenceModel(read_hf(directory), spec["px"]).to(torch.bfloat16)
    pixels = {name: stored[f"pixels/{spec['strategy']}/{name}"] for name in goldens["images"]}
    prompts = [prompt["input_ids"] for prompt in goldens["prompts"]]
    arrays, _ = outputs(model, pixels, prompts, "hf")
    deviations: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
    for name, value in arrays.items():
        kind = kind_of(name)
        if kind in KINDS:
            deviations[kind][name.removeprefix("hf/")] = deviation(kind, value, stored[name])
    return {
        "versions": {"torch": torch.__version__},
        "units": {kind: "std" if kind in RELATIVE else "absolute" for kind in KINDS},
        "overall": {kind: summary([*each.values()]) for kind, each in deviations.items()},
        "each": {
            name: summary([value]) for each in deviations.values() for name, value in each.items()
        },
    }
