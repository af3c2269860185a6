"""The common form in which every source is passed to the conversion."""

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
# Exceptions that settings of a wrong type or size raise where they are first used.
MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ZeroDivisionError)


def malformed(name: str, error: Exception) -> str:
    """Message for an exception of ``MALFORMED`` caused by the JSON files of ``name``."""
    reason = one_line(error)[:100]
    return f"A setting in {name} is malformed ({type(error).__name__}: {reason})"


@dataclass
class Source:
    """A Moxin checkpoint, independent of its original layout.

    Attributes:
        kind: the layout, in words, for "converted ...".
        directory: directory of its files.
        is_loadable: whether mlx-vlm can load ``directory`` without conversion.
        config: the complete config, including sizes derived from tensors.
        tensors: the model's parameters under our names; packed layers have ``weight``,
            ``scales`` and possibly ``biases``.
        dtype: dtype for storing unpacked tensors unless options specify one; None to keep each
            tensor's dtype.
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
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def packed_layers(self) -> dict[str, LayerSettings]:
        """Settings of the quantised layers, by path.

        Raises:
            ValueError: if MLX does not support the settings.
        """
        return {
            path: layer_settings(self.quantization or {}, path)
            for path, part in map(split_name, self.tensors)
            if part == "scales"
        }


def our_tensors(tensors: Tensors, config: VisionConfig) -> Tensors:
    """Rename the tensors of an HF-converted checkpoint to our names and drop unused ones.

    Raises:
        ValueError: if two tensors get the same name.
    """
    counts = Counter(moxin_name(name, [*config.towers]) for name in tensors)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"The checkpoint has {twice[0]} twice, under two names")
    return convert_weights(tensors, config)
