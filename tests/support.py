"""Paths and reference data that the tests share."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from warm_processes import command as warm_command
from warm_processes import offline

REFERENCE = Path(__file__).parent / "reference"
IMAGES = REFERENCE / "images"
TINY = REFERENCE / "tiny28"
HF_CHECKPOINT = TINY / "hf"

GOLDENS = json.loads((TINY / "goldens.json").read_text(encoding="utf-8"))
ARRAYS = np.load(TINY / "goldens.npz")
BF16_ERRORS = json.loads((TINY / "bf16_errors.json").read_text(encoding="utf-8"))
IMAGE_NAMES = GOLDENS["images"]
PROMPTS = GOLDENS["prompts"]
MESSAGES = [prompt["message"] for prompt in PROMPTS]

# Tolerances of the float32 comparison; reference/README.md says where they come from.
LOGITS_TOLERANCE = 5e-4
FEATURES_TOLERANCE = 5e-5


def image_path(name: str) -> str:
    return str(IMAGES / f"{name}.png")


def preprocessor_config(image_size: int) -> dict[str, Any]:
    """preprocessor_config.json of an HF-converted checkpoint, for squares of ``image_size``.

    Its constants are rounded to bfloat16, as in published checkpoints.
    """
    text = (HF_CHECKPOINT / "preprocessor_config.json").read_text(encoding="utf-8")
    config = json.loads(text)
    square = [image_size, image_size]
    config["input_sizes"] = [[3, *square]] * 2
    for resize, crop in zip(config["tvf_resize_params"], config["tvf_crop_params"]):
        resize["size"] = square
        crop["output_size"] = square
    return config


def run_module(*arguments: str, python: str | None = None, **kwargs) -> subprocess.CompletedProcess:
    """``python -m ...`` in a separate process, offline, with its output captured as text.

    Args:
        python: the interpreter of a new process; None for this one, forked (``warm_processes``).
    """
    environment = {**offline(os.environ), **kwargs.pop("env", {})}
    if python is None:
        command = warm_command("-m", *arguments, environment=environment)
    else:
        command = [python, "-m", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        **kwargs,
    )


def run_python(
    code: str,
    *arguments: str,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    is_warm: bool = False,
) -> str:
    """Standard output of ``code`` in a clean process; fails with its standard error.

    Args:
        options: of Python.
        env: the environment; by default this process's.
        is_warm: the code imports ``mlx_vlm`` or a part of it before anything else, so the process
            may start with that imported (``warm_processes``).
    """
    environment = offline(os.environ if env is None else env)
    command = [*options, "-c", code, *map(str, arguments)]
    if is_warm:
        command = warm_command(*command, environment=environment)
    else:
        command = [sys.executable, *command]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def active_memory() -> int:
    """Bytes in use, after collecting models of earlier tests as garbage."""
    gc.collect()
    mx.reset_peak_memory()
    return mx.get_active_memory()
