"""What every source hands to the conversion."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from mlx_vlm.models.moxin.quantization import layer_settings
from mlx_vlm.models.moxin.vision_config import VisionConfig
from mlx_vlm.models.moxin.weights import convert_weights, moxin_name

from mlx_vlm_moxin.checkpoints.layer_settings import LayerSettings, split_name
from mlx_vlm_moxin.checkpoints.messages import one_line
from mlx_vlm_moxin.checkpoints.tensors import LazyTensor

Tensors = dict[str, LazyTensor]
# What settings of a wrong type or size raise where they are first used.
MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ZeroDivisionError)


def malformed(name: str, error: Exception) -> str:
    """Message about such an error in the JSON files of ``name``."""
    reason = one_line(error)[:100]
    return f"A setting in {name} is malformed ({type(error).__name__}: {reason})"


@dataclass
class Source:
    """A Moxin checkpoint, whatever its layout was.

    Attributes:
        kind: the layout, in words, for "converted ...".
        directory: where its files are.
        is_loadable: whether mlx-vlm can load ``directory`` as it is.
        config: complete, sizes included.
        tensors: the model's parameters under our names; packed layers have ``weight``,
            ``scales`` and possibly ``biases``.
        dtype: what unpacked tensors are stored as unless options say otherwise; None for what
            they are.
        quantization: ``group_size``, ``bits`` and ``mode``, then the layers that differ;
            None if no tensor is packed.
    """

    kind: str
    directory: Path
    is_loadable: bool
    config: ModelConfig
    tensors: Tensors
    processor: MoxinProcessor
    generation_config: dict[str, Any]
    dtype: str | None = None
    quantization: dict[str, Any] | None = None

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def packed_layers(self) -> dict[str, LayerSettings]:
        """Settings of the layers whose tensors are packed, by path.

        Raises:
            ValueError: if MLX does not support them.
        """
        return {
            path: layer_settings(self.quantization or {}, path)
            for path, part in map(split_name, self.tensors)
            if part == "scales"
        }


def our_tensors(tensors: Tensors, config: VisionConfig) -> Tensors:
    """Tensors with the names of an HF-converted checkpoint under ours, unused ones dropped.

    Raises:
        ValueError: if two of them have the same name of ours.
    """
    counts = Counter(moxin_name(name, [*config.towers]) for name in tensors)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"The checkpoint has {twice[0]} twice, under two names")
    return convert_weights(tensors, config)
