"""Replacements for the commands on a page, and the commands that are skipped, with reasons."""

import re

from pages.commands import Command

PORT = 8123
# Native checkpoints also need the towers and the language model from the Hub.
_NATIVE = (
    "materials/native --dino materials/hub/dino.safetensors "
    "--siglip materials/hub/siglip.safetensors --llm materials/hub/llm"
)
# Text on a page -> its replacement here, with the small models and data of ``materials``.
STAND_INS = {
    r"bobchenyx/Moxin-7B-VLM-hf": "materials/hf",
    r"moxin-org/Moxin-7B-VLM-8bit-mlx": "materials/ominix",
    r"--hf-path (moxin-org/Moxin-7B-VLM|TRI-ML/\S+)(?=\s|$)": f"--hf-path {_NATIVE}",
    r"--hf-path openvla/openvla-7b(?=\s)": "--hf-path materials/openvla",
    # Its widths are not multiples of any group size.
    r"--hf-path moojink/\S+( .*) -q --q-bits 8": r"--hf-path materials/oft\1 --dtype bfloat16",
    r"--port \d+": f"--port {PORT}",
    r"(localhost|127\.0\.0\.1):\d+": rf"\1:{PORT}",
    r"--max-tokens \d+": "--max-tokens 8",
    r"range\(100\)": "range(8)",
    r"max_tokens=100": "max_tokens=8",
    r"(mlx_vlm\.train .*)": r"\1 --iters 2 --batch-size 1",
    r"(mlx_lm benchmark .*)": r"\1 --num-trials 1",
    r"(evals\.speed)(?!.*--model)(.*)": r"\1\2 --model moxin",
    r"(evals\.speed .*)": r"\1 --batch-sizes 1 --examples 2 --tasks vsr",
    r"(evals\.pope .*)": r"\1 --dataset DATA/pope --image-folder DATA/pope/val2014 --max-samples 3",
    r"(mlx_vlm_moxin eval (?!.*--data).*)": r"\1 --data DATA",
    r"(--evaluate vsr gqa.*)": r"\1 --evaluate-data DATA",
    r"^image = \.\.\.": "image = __import__('numpy').zeros((48, 64, 3), 'uint8')",
}
# Commands that do not run here, and why.
LEFT_OUT = {
    r"^(pip install|git clone)": "installs, which the tests do",
    r"^apt |LD_PRELOAD": "changes the machine",
    r"^make ": "is one of the Makefile, as this program is",
    r"python -m pytest": "runs the tests themselves",
    r"--upload-repo|upload ": "uploads to the Hub",
    r"CUDA": "needs NVIDIA GPUs",
    r"chat_ui": "needs a browser",
    r"mlx_vlm(\.| )chat\b": "reads from the terminal, which the tests type into",
    r"mlx_audio|mlx_lm (convert|generate) .*glm": "downloads another model",
    r"DRAFTER|haproxy": "stands for the reader's own file or program",
    r"mlx_vlm\.evals": "needs a data set from the Hub",
    r"sys\.argv": "is a file that mlx.launch runs",
    r"tiny\.(evaluate|train)|openvla_tiny\.episode": "takes minutes",
    r"bench\.(peers|serve|conversion)": "takes minutes",
}


def reason_to_leave_out(command: Command) -> str | None:
    """Why ``command`` is not run; None if it is."""
    for pattern, reason in LEFT_OUT.items():
        if re.search(pattern, command.text, re.MULTILINE):
            return reason
    return None


def prepared(command: Command) -> str:
    """The text of ``command`` with its stand-ins."""
    text = command.text
    for pattern, replacement in STAND_INS.items():
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text
