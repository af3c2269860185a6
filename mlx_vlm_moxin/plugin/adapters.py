"""Adapters: checks of names and shapes, which mlx-vlm does not do, and action statistics."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin import Model

# File names of an adapter's weights, mlx-vlm's first.
WEIGHTS_FILES = ("adapters.safetensors", "weights.safetensors")


def weights_file(path: Path) -> Path:
    """The weights of the adapter at ``path``, a directory or the file itself.

    mlx-vlm gets this file, so that it reads the checked one. A path without weights is returned
    unchanged, for mlx-vlm's error.
    """
    files = (path / name for name in WEIGHTS_FILES)
    return next((file for file in files if file.is_file()), path)


def _dims(linear: nn.Module) -> tuple[int, int]:
    """Output and input width of a plain or quantised layer."""
    outputs, inputs = linear.weight.shape
    return outputs, inputs * 32 // linear.bits if isinstance(linear, nn.QuantizedLinear) else inputs


def _expected(model: nn.Module, rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of an adapter's weights in ``model``; mlx-vlm has two forms of layers."""
    for name, module in model.named_modules():
        for base, first, second in (("linear", "lora_a", "lora_b"), ("original_layer", "A", "B")):
            if base in module and first in module:
                outputs, inputs = _dims(module[base])
                yield f"{name}.{first}", (inputs, rank)
                yield f"{name}.{second}", (rank, outputs)
                if "m" in module:  # DoRA's magnitudes
                    yield f"{name}.m", (outputs,)


def check_adapter(model: nn.Module, file: Path, rank: int) -> None:
    """Compare an adapter's weights with the layers created for it.

    Args:
        model: with the adapter.
        file: the adapter's weights.
        rank: the rank that ``adapter_config.json`` names.

    Raises:
        ValueError: naming the first tensor that is missing, unknown or of another shape.
    """
    shapes = {name: tuple(value.shape) for name, value in mx.load(str(file)).items()}
    expected = dict(_expected(model, rank))
    unknown = shapes.keys() - dict(tree_flatten(model.parameters())).keys()
    if unknown:
        raise ValueError(f"{file.name}: the base model has no {min(unknown)}")
    missing = expected.keys() - shapes.keys()
    if missing:
        raise ValueError(f"{file.name} lacks {min(missing)}, which adapter_config.json names")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ValueError(
                f"{file.name}: {name} has the shape {list(shapes[name])}, while the base model "
                f"and rank {rank} in adapter_config.json give {list(shape)}"
            )


def apply_lora_layers(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """``apply_lora_layers`` that checks an adapter and uses its action statistics, for Moxin."""

    @functools.wraps(original)
    def apply(model: nn.Module, adapter_path: str | Path) -> nn.Module:
        if not isinstance(model, Model):
            return original(model, adapter_path)
        file = weights_file(Path(adapter_path))
        model = original(model, file)
        config: dict[str, Any] = model.config.lora  # as mlx-vlm read it
        rank = config.get("lora_parameters", config).get("rank")
        if rank is not None:  # a full fine-tune has none and is loaded strictly
            check_adapter(model, file, rank)
        model.config.read_statistics(file.parent)
        return model

    return apply
