"""Checks the values of generation settings, from commands, the server or the library.

mlx-vlm checks few of them: a negative temperature gives a meaningless answer, a group size that
does not divide the heads ends the answer when the cache is first quantised.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlx_vlm import kv_quant
from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES
from mlx_vlm.turboquant import turboquant_enabled

# Name of a setting, and why its value cannot be used.
Fault = tuple[str, str]
# Tokens at the start that a cache of limited size always keeps (models/cache.py of mlx-vlm).
KEPT_TOKENS = 4
# TurboQuant makes a code book of 2 ** bits entries for each layer.
MAX_TURBOQUANT_BITS = 8


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``.

    Attributes:
        is_open: whether ``low`` itself is excluded.
    """

    low: float = -math.inf
    high: float = math.inf
    is_open: bool = False

    def fault(self, value: Any) -> str | None:
        """Why ``value`` cannot be used; None if it can."""
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            return "it must be a finite number"
        if self.low <= value <= self.high and not (self.is_open and value == self.low):
            return None
        if math.isfinite(self.high):
            return f"it must be from {self.low:g} to {self.high:g}"
        return f"it must be {'above' if self.is_open else 'at least'} {self.low:g}"


COUNT = Range(1)
RANGES = {
    "temperature": Range(0),
    "top_p": Range(0, 1),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(0, is_open=True),
    "presence_penalty": Range(),
    "frequency_penalty": Range(),
    "repetition_context_size": COUNT,
    "presence_context_size": COUNT,
    "frequency_context_size": COUNT,
    "max_tokens": COUNT,
    "prefill_step_size": COUNT,
    "quantized_kv_start": Range(0),
    "max_kv_size": Range(KEPT_TOKENS + 1),
    "draft_block_size": COUNT,
}


def _resize_shape(values: Mapping[str, Any], config: ModelConfig) -> Iterator[Fault]:
    shape = values.get("resize_shape")
    if shape is None:
        return
    is_shape = isinstance(shape, (list, tuple)) and len(shape) in (1, 2)
    if not is_shape or not all(type(side) is int for side in shape):
        yield "resize_shape", "resize_shape must contain 1 or 2 integers"
    elif min(shape) < 1:
        yield "resize_shape", "sides must be at least 1 pixel"


def _top_k(values: Mapping[str, Any], config: ModelConfig) -> Iterator[Fault]:
    top_k = values.get("top_k")
    if top_k is not None and (reason := Range(0, config.text_config.vocab_size - 1).fault(top_k)):
        yield "top_k", f"{reason} (0: all tokens)"


def _kv_cache(values: Mapping[str, Any], config: ModelConfig) -> Iterator[Fault]:
    bits = values.get("kv_bits")
    if bits is None:
        return
    if values.get("max_kv_size") is not None:
        yield "kv_bits", "mlx-vlm does not quantise a cache of limited size (max_kv_size)"
    names = ("kv_key_bits", "kv_value_bits", "kv_key_scheme", "kv_value_scheme")
    group_size = values.get("kv_group_size") or 64
    try:
        policy = kv_quant.from_legacy(
            bits, values.get("kv_quant_scheme"), group_size, *map(values.get, names)
        )
    except (TypeError, ValueError) as error:
        yield "kv_bits", str(error)
        return
    is_mixed = not policy.is_homogeneous
    if not is_mixed and not policy.is_turboquant:
        for name in names[:2]:
            if values.get(name) not in (None, bits):
                yield name, "keys and values differ with the turboquant scheme alone"
    for name, spec in (("kv_key_bits", policy.key), ("kv_value_bits", policy.value)):
        # If they are not set, kv_bits applies.
        name = name if values.get(name) is not None else "kv_bits"
        if spec.is_turboquant:
            if reason := Range(1, MAX_TURBOQUANT_BITS).fault(spec.bits):
                yield name, reason
        elif spec.bits not in AFFINE_BITS:
            yield name, f"MLX has {', '.join(map(str, AFFINE_BITS))}, and fractions (turboquant)"
    if turboquant_enabled(bits, values.get("kv_quant_scheme")) and not is_mixed:
        return
    head_dim = config.text_config.head_dim
    fitting = [size for size in AFFINE_GROUP_SIZES if head_dim % size == 0]
    if group_size not in fitting:
        fit = f"{' or '.join(map(str, fitting))} fit" if fitting else "turboquant has no groups"
        reason = f"MLX quantises groups of 32, 64 or 128 channels, and heads have {head_dim}: {fit}"
        yield "kv_group_size" if "kv_group_size" in values else "kv_bits", reason


def faults(values: Mapping[str, Any], config: ModelConfig) -> Iterator[Fault]:
    """The wrong values among settings of generation.

    Args:
        values: arguments of ``mlx_vlm.stream_generate`` by name; None means not given, and
            other names are ignored.
        config: the model's.

    Yields:
        Names of settings and why their values cannot be used.
    """
    for name, allowed in RANGES.items():
        value = values.get(name)
        if value is not None and (reason := allowed.fault(value)):
            yield name, reason
    for rule in (_top_k, _resize_shape, _kv_cache):
        yield from rule(values, config)


def check(values: Mapping[str, Any], config: ModelConfig) -> None:
    """Refuse settings of generation that cannot be used; arguments as for ``faults``.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """
    for name, reason in faults(values, config):
        raise ValueError(f"{name}={values.get(name)!r} cannot be used: {reason}")
