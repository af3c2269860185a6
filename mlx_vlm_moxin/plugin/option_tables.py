"""Tables of options of mlx-vlm's commands: their ranges, and those that Moxin does not support.

Options have the names of argparse's attributes: ``max_kv_size`` for ``--max-kv-size``. An option
has the same meaning in every command, so there is one table for all of them.
"""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn

from mlx_vlm_moxin.library.generation_settings import COUNT, Range


@dataclass(frozen=True)
class Command:
    """A command that is about to load Moxin.

    Attributes:
        module: the module that parsed the options, such as ``mlx_vlm.chat``.
        args: the options.
        model: the model, built but without its weights.
        quantization: config.json's; None if the checkpoint is not quantised.
    """

    module: str
    args: Namespace
    model: nn.Module
    quantization: dict[str, Any] | None

    def get(self, name: str) -> Any:
        """Value of an option; None if the command does not have it."""
        return getattr(self.args, name, None)


# In addition to those of generation_settings.RANGES.
RANGES = {
    "port": Range(0, 65535),
    "vision_cache_size": COUNT,
    "log_progress_interval": Range(0),
    "max_num_seqs": COUNT,
    "top_logprobs_k": Range(0, 20),
    "lora_rank": COUNT,
    "lora_alpha": Range(0, is_open=True),
}
# A kind of model that Moxin is not -> its options, which would be ignored. Only for commands with
# one model; a server may serve other models too.
ONE_MODEL = ("mlx_vlm.generate", "mlx_vlm.chat", "mlx_vlm.convert")
NOT_FOR_MOXIN = {
    "Moxin does not support audio": ("audio", "ref_audio"),
    "Moxin supports one still picture: give a frame with --image": (
        "video",
        "fps",
        "video_num_frames",
        "video_min_frames",
        "video_max_frames",
    ),
    "Moxin answers in text": (
        "output_modality",
        "output",
        "task",
        "size",
        "steps",
        "workflow",
        "num_frames",
        "last_image",
        "reference",
        "guidance",
        "prompt_expansion_model",
    ),
    "Moxin is not a diffusion model": (
        "max_denoising_steps",
        "block_length",
        "num_to_transfer",
        "max_transfer_per_step",
        "editing_threshold",
        "max_post_steps",
        "stability_steps",
        "diffusion_full_canvas",
        "diffusion_min_canvas_length",
        "diffusion_max_canvas_length",
        "diffusion_sampler",
        "threshold",
        "min_threshold",
    ),
    "Moxin has no thinking mode": (
        "enable_thinking",
        "thinking_mode",
        "thinking_budget",
        "thinking_start_token",
        "thinking_end_token",
    ),
    "Moxin has no experts": ("expert_cache_gb",),
    "Moxin has no multi-token prediction layers": ("mtp", "mtp_output"),
}
# Default values of these options that are neither None nor False.
DEFAULTS = {
    "fps": 2.0,
    "output_modality": "text",
    "task": "generate",
    "diffusion_sampler": "confidence-threshold",
    "thinking_start_token": "<think>",
    "thinking_end_token": "</think>",
    "quantization_group_size": 64,
    "lora_rank": 8,
    "lora_alpha": 16.0,
    "lora_dropout": 0.0,
}
# Options without effect unless another one is given.
NEEDS = {
    "draft_kind": "draft_model",
    "draft_block_size": "draft_model",
    "kv_key_bits": "kv_bits",
    "kv_value_bits": "kv_bits",
    "kv_key_scheme": "kv_bits",
    "kv_value_scheme": "kv_bits",
    "quantization_group_size": "quantization_bits",
    "reward_weights": "reward_functions",
}


def flag(name: str) -> str:
    """The option as written on the command line."""
    return f"--{name.replace('_', '-')}"


def is_given(name: str, value: Any) -> bool:
    """Whether an option has another value than its default."""
    return value is not None and value is not False and value != DEFAULTS.get(name)
