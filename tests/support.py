"""Paths and reference data that the tests share."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

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


def run_module(
    *arguments: str, python: str = sys.executable, **kwargs
) -> subprocess.CompletedProcess:
    """``python -m ...`` in a clean process, offline, with its output captured as text."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **kwargs.pop("env", {})}
    return subprocess.run(
        [python, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        **kwargs,
    )


def run_python(code: str, *arguments: str, options: Sequence[str] = (), **kwargs) -> str:
    """Standard output of ``code`` in a clean process; fails with its standard error."""
    command = [sys.executable, *options, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, **kwargs)
    assert result.returncode == 0, result.stderr
    return result.stdout


def active_memory() -> int:
    """Bytes in use, without models of earlier tests that nobody has collected yet."""
    gc.collect()
    mx.reset_peak_memory()
    return mx.get_active_memory()
