"""Checks options of ``mlx_vlm.train`` that do not fit the model or the adapter."""

from collections.abc import Iterator
from pathlib import Path

import mlx.nn as nn
from safetensors import SafetensorError, safe_open

from mlx_vlm_moxin.library.generation_settings import Fault, Range
from mlx_vlm_moxin.plugin.option_tables import Command, is_given

# Files that an adapter's directory may hold, in mlx-vlm's order.
ADAPTER_FILES = ("adapters.safetensors", "weights.safetensors")
# Parts that --train-vision trains in addition to the decoder's adapter.
TOWERS = ("vision_tower.", "multi_modal_projector.")


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
            if is_given(name, command.get(name)):
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


TRAINING_RULES = (_training, _resumed, _rewards)
