"""Options of mlx-vlm's commands: which values they may have, and which cannot apply to Moxin.

Options are named as argparse stores them: ``max_kv_size`` for ``--max-kv-size``. An option
means the same in every command that has it, so there is one table for all of them.
tests/plugin/test_command_options.py goes through the parsers of all commands: an option that
is neither here nor in its list of those that need no check fails it.
"""

import inspect
import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_vlm.generate import DEFAULT_QUANTIZED_KV_START, generate_step
from mlx_vlm.generate.types import GenerateKwargs
from mlx_vlm.kv_quant import TURBOQUANT_SCHEME, UNIFORM_SCHEME
from mlx_vlm.turboquant import turboquant_enabled
from safetensors import SafetensorError, safe_open

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.library import generation_settings
from mlx_vlm_moxin.library.generation_settings import COUNT, KEPT_TOKENS, Fault, Range


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


# Beside those of generation_settings.RANGES.
RANGES = {
    "port": Range(0, 65535),
    "vision_cache_size": COUNT,
    "log_progress_interval": Range(0),
    "max_num_seqs": COUNT,
    "top_logprobs_k": Range(0, 20),
    "lora_rank": COUNT,
    "lora_alpha": Range(0, is_open=True),
}
# What Moxin is not -> options that are about it and would be ignored, in the commands that
# are about one model; a server may serve others too.
ONE_MODEL = ("mlx_vlm.generate", "mlx_vlm.chat", "mlx_vlm.convert")
NOT_FOR_MOXIN = {
    "Moxin hears nothing": ("audio", "ref_audio"),
    "Moxin sees one still picture: give a frame with --image": (
        *("video", "fps", "video_num_frames", "video_min_frames", "video_max_frames"),
    ),
    "Moxin answers in text": (
        *("output_modality", "output", "task", "size", "steps", "workflow", "num_frames"),
        *("last_image", "reference", "guidance", "prompt_expansion_model"),
    ),
    "Moxin writes one token after another, it is no diffusion model": (
        *("max_denoising_steps", "block_length", "num_to_transfer", "max_transfer_per_step"),
        *("editing_threshold", "max_post_steps", "stability_steps", "diffusion_full_canvas"),
        *("diffusion_min_canvas_length", "diffusion_max_canvas_length", "diffusion_sampler"),
        *("threshold", "min_threshold"),
    ),
    "Moxin answers without thinking first": (
        *("enable_thinking", "thinking_mode", "thinking_budget"),
        *("thinking_start_token", "thinking_end_token"),
    ),
    "Moxin has no experts to keep on disk": ("expert_cache_gb",),
    "Moxin has no layers that predict several tokens": ("mtp", "mtp_output"),
}
# Values of these options that mean "not given", where it is neither None nor False.
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


# Files that an adapter's directory may hold, in mlx-vlm's order.
ADAPTER_FILES = ("adapters.safetensors", "weights.safetensors")
# What --train-vision trains beside the decoder's adapter.
TOWERS = ("vision_tower.", "multi_modal_projector.")


def flag(name: str) -> str:
    """The option as one types it."""
    return f"--{name.replace('_', '-')}"


def _is_given(name: str, value: Any) -> bool:
    return value is not None and value is not False and value != DEFAULTS.get(name)


def _ranges(command: Command) -> Iterator[Fault]:
    for name, value in vars(command.args).items():
        if isinstance(value, float) and not math.isfinite(value):
            yield name, "it must be a finite number"
        elif name in RANGES and value is not None and (reason := RANGES[name].fault(value)):
            yield name, reason


def _no_effect(command: Command) -> Iterator[Fault]:
    if command.module.startswith(ONE_MODEL):
        for reason, names in NOT_FOR_MOXIN.items():
            for name in names:
                if _is_given(name, command.get(name)):
                    yield name, reason
    for name, needed in NEEDS.items():
        if _is_given(name, command.get(name)) and command.get(needed) is None:
            yield name, f"it has no effect without {flag(needed)}"


def _generation(command: Command) -> Iterator[Fault]:
    config = command.model.config
    yield from generation_settings.faults(vars(command.args), config)
    for name in ("processor_kwargs", "gen_kwargs"):
        values = command.get(name)
        if values is None:
            continue
        if not isinstance(values, dict):
            yield name, "it must be a JSON object"
            continue
        for inner, reason in generation_settings.faults(values, config):
            yield name, f"{inner}: {reason}"
        known = {*GenerateKwargs.__annotations__, *inspect.signature(generate_step).parameters}
        if name == "processor_kwargs":
            known = set()
        for inner in values.keys() - known:
            yield name, f"there is no argument {inner!r}"


def _picture_in_cache(command: Command) -> Iterator[Fault]:
    """A cache that is smaller than a picture would drop visual tokens without a word."""
    size, vision = command.get("max_kv_size"), command.model.config.vision_config
    # Where there is no such option, pictures come later.
    has_picture = command.get("image") or not hasattr(command.args, "image")
    least = vision.num_patches + 1 + KEPT_TOKENS
    if isinstance(size, int) and has_picture and KEPT_TOKENS < size < least:
        yield "max_kv_size", f"a picture alone needs {least} tokens of the cache"


def _batched_cache(command: Command) -> Iterator[Fault]:
    """The cache of the server's batches has fewer kinds than that of one answer."""
    if not command.module.startswith("mlx_vlm.server") or command.get("kv_bits") is None:
        return
    scheme = command.get("kv_quant_scheme")
    is_turboquant = turboquant_enabled(command.get("kv_bits"), scheme)
    usual = TURBOQUANT_SCHEME if is_turboquant else UNIFORM_SCHEME
    for name in ("kv_key_scheme", "kv_value_scheme"):
        if command.get(name) not in (None, usual):
            yield name, f"the server has one scheme for keys and values, here {usual}"
    start = command.get("quantized_kv_start")
    if not is_turboquant and start not in (0, DEFAULT_QUANTIZED_KV_START):
        yield (
            "quantized_kv_start",
            "the server quantises a uniform cache from its first token on; "
            "--kv-quant-scheme turboquant begins later",
        )


def _checkpoint(command: Command) -> Iterator[Fault]:
    path = command.get("hf_path") or command.get("model")
    # "main" is what mlx_vlm.generate has where none is given.
    if command.get("revision") not in (None, "main") and path and Path(path).exists():
        yield "revision", f"{path} is a local directory, which has one version"
    if command.get("quantize_activations"):
        mode = (command.quantization or {}).get("mode")
        if mode not in ("nvfp4", "mxfp8"):
            yield "quantize_activations", "it needs a checkpoint in mode nvfp4 or mxfp8"


def _conversion(command: Command) -> Iterator[Fault]:
    names = [field.name for field in fields(QuantizeOptions)]
    if not command.module.startswith("mlx_vlm.convert"):
        return
    try:
        QuantizeOptions(**{name: command.get(name) for name in names}).check()
    except ValueError as error:
        yield "", str(error)
    stored = command.quantization
    if command.get("dequantize") and stored is None:
        yield "dequantize", "the checkpoint is not quantised"
    if command.get("quantize") and stored is not None:
        yield (
            "quantize",
            f"the checkpoint is quantised to {stored.get('bits')} bits already, and mlx-vlm would "
            "leave it so; python -m mlx_vlm_moxin convert quantises it again",
        )


def _training(command: Command) -> Iterator[Fault]:
    rank, dropout = command.get("lora_rank"), command.get("lora_dropout")
    width = command.model.config.text_config.hidden_size
    if isinstance(rank, int) and rank > width:
        yield "lora_rank", f"the layers are {width} wide, which is the most that makes sense"
    if dropout is not None and not 0 <= dropout < 1:
        yield "lora_dropout", "it must be from 0 to below 1"
    bits = (command.quantization or {}).get("bits")
    if command.get("quantization_bits") is not None and bits is not None:
        yield "quantization_bits", f"the checkpoint is quantised to {bits} bits already"
    if command.get("train_type") == "dora" and bits is not None and 32 % bits:
        yield "train_type", f"mlx-vlm has no DoRA for layers of {bits} bits; LoRA it has"
    if command.get("train_type") == "full":
        for name in ("lora_rank", "lora_alpha", "lora_dropout", "target_modules"):
            if _is_given(name, command.get(name)):
                yield name, "it has no effect on full training, which has no adapter"
    linears = [
        name
        for name, module in command.model.named_modules()
        if isinstance(module, (nn.Linear, nn.QuantizedLinear))
    ]
    known = {name.rpartition(".")[2] for name in linears if name.startswith("language_model.")}
    for target in command.get("target_modules") or ():
        if target not in known and not any(f".{name}".endswith(f".{target}") for name in linears):
            yield (
                "target_modules",
                f"no layer is called {target}; there are {', '.join(sorted(known))}",
            )


def _resumed(command: Command) -> Iterator[Fault]:
    """Tensors of an adapter that would be loaded, left as they are, and not saved again."""
    path = command.get("resume_adapter_file")
    if path is None or command.get("train_vision") or command.get("train_type") == "full":
        return
    path = Path(path)
    files = [path / name for name in ADAPTER_FILES] if path.is_dir() else [path]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return  # mlx-vlm says so
    try:
        with safe_open(file, framework="np") as tensors:
            towers = [name for name in tensors.keys() if name.startswith(TOWERS)]
    except SafetensorError as error:
        yield "resume_adapter_file", f"{file} cannot be read ({error})"
        return
    if towers:
        yield (
            "resume_adapter_file",
            f"it holds {len(towers)} tensors of vision towers and projector, which would be lost: "
            "add --train-vision",
        )


def _rewards(command: Command) -> Iterator[Fault]:
    names, weights = command.get("reward_functions"), command.get("reward_weights")
    if names is None:
        return
    names = [name.strip() for name in names.split(",")]
    if command.get("reward_functions_file") is None:
        from mlx_vlm.trainer.vlm.grpo import rewards

        for name in names:
            if not callable(getattr(rewards, name, None)):
                yield "reward_functions", f"mlx-vlm has no {name}; give --reward-functions-file"
    is_list = isinstance(weights, list) and len(weights) == len(names)
    if weights is not None and not (is_list and all(Range().fault(w) is None for w in weights)):
        yield "reward_weights", f"it must be a JSON list of {len(names)} numbers"


RULES: tuple[Callable[[Command], Iterator[Fault]], ...] = (
    _ranges,
    _batched_cache,
    _generation,
    _no_effect,
    _picture_in_cache,
    _checkpoint,
    _conversion,
    _training,
    _resumed,
    _rewards,
)
