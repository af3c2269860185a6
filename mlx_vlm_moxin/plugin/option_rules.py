"""Rules for the options of mlx-vlm's commands; each rule checks the options of a command.

tests/plugin/test_option_coverage.py checks the parsers of all commands: every option must have a
rule, be in a table, or be in the test's list of options without a check.
"""

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from mlx_vlm.generate import DEFAULT_QUANTIZED_KV_START, generate_step
from mlx_vlm.generate.types import GenerateKwargs
from mlx_vlm.kv_quant import TURBOQUANT_SCHEME, UNIFORM_SCHEME
from mlx_vlm.turboquant import turboquant_enabled

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.library import generation_settings
from mlx_vlm_moxin.library.generation_settings import KEPT_TOKENS, Fault
from mlx_vlm_moxin.plugin.option_tables import (
    NEEDS,
    NOT_FOR_MOXIN,
    ONE_MODEL,
    RANGES,
    Command,
    flag,
    is_given,
)
from mlx_vlm_moxin.plugin.training_rules import TRAINING_RULES


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
                if is_given(name, command.get(name)):
                    yield name, reason
    for name, needed in NEEDS.items():
        if is_given(name, command.get(name)) and command.get(needed) is None:
            yield name, f"it has no effect without {flag(needed)}"


def _repeated(command: Command) -> Iterator[Fault]:
    """For an option with several values argparse keeps only the last occurrence."""
    for name, value in vars(command.args).items():
        typed = [argument.partition("=")[0] for argument in sys.argv].count(flag(name))
        if isinstance(value, list) and typed > 1:
            yield name, f"{flag(name)} is given {typed} times, of which only the last would count"


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
    """A cache smaller than a picture would silently drop visual tokens."""
    size, vision = command.get("max_kv_size"), command.model.config.vision_config
    # In commands without this option, pictures are given later.
    has_picture = command.get("image") or not hasattr(command.args, "image")
    least = vision.num_patches + 1 + KEPT_TOKENS
    if isinstance(size, int) and has_picture and KEPT_TOKENS < size < least:
        yield "max_kv_size", f"a picture alone needs {least} tokens of the cache"


def _batched_cache(command: Command) -> Iterator[Fault]:
    """The server's batches support fewer kinds of caches than a single answer."""
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
    # "main" is mlx_vlm.generate's default.
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


RULES: tuple[Callable[[Command], Iterator[Fault]], ...] = (
    _repeated,
    _ranges,
    _batched_cache,
    _generation,
    _no_effect,
    _picture_in_cache,
    _checkpoint,
    _conversion,
    *TRAINING_RULES,
)
