"""What a conversion will write: names, shapes, dtypes and quantisation, but no values.

mlx-vlm's quantiser runs on a model whose parameters are never evaluated, so that it chooses the
same layers and settings as ``mlx_vlm.convert``.
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_vlm.convert import mixed_quant_predicate_builder
from mlx_vlm.models.moxin.moxin import Model
from mlx_vlm.quant_utils import compute_bits_per_weight, quantize_model

from mlx_vlm_moxin.checkpoints.layer_settings import LayerSettings, quantized_layers
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.sources import Source
from mlx_vlm_moxin.checkpoints.sources.base import MALFORMED, malformed
from mlx_vlm_moxin.checkpoints.stored_dtypes import stored_dtype
from mlx_vlm_moxin.checkpoints.tensor_checks import check_depth, check_tensors


@dataclass(frozen=True)
class Skeleton:
    """The tensors of a finished conversion.

    Attributes:
        tensors: unevaluated arrays with the names, shapes and dtypes to write, in mlx-vlm's
            order.
        dtypes: dtype of each parameter before quantising.
        layers: settings of the quantised layers, by path.
        quantization: config.json's; None if no layer is quantised.
        bits_per_weight: stored bits per parameter, scales and biases included.
    """

    tensors: dict[str, mx.array]
    dtypes: dict[str, mx.Dtype]
    layers: dict[str, LayerSettings]
    quantization: dict[str, Any] | None
    bits_per_weight: float

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def requantizes(self, source: Source) -> bool:
        """Whether a layer that is packed in ``source`` is packed with other settings here."""
        return any(
            source.packed_layers.get(path, settings) != settings
            for path, settings in self.layers.items()
        )


def _build_model(source: Source) -> Model:
    """The unquantised model of ``source``, after checking that the source's tensors fit it.

    Raises:
        ValueError: if the source's tensors do not fit its config.
    """
    check_depth(source.config, len(source.tensors))
    try:
        model = Model(source.config)
    except (*MALFORMED, RuntimeError, ValueError) as error:
        raise ValueError(malformed(str(source.directory), error)) from error
    check_tensors(source.tensors, source.packed_layers, model)
    return model


def _quantize(model: Model, source: Source, options: QuantizeOptions) -> dict[str, Any] | None:
    """Quantise the layers of ``model`` according to ``options``, or like the source."""
    if options.quantize:
        predicate = None  # the model's
        if options.quant_predicate:
            predicate = mixed_quant_predicate_builder(options.quant_predicate, model)
        with contextlib.redirect_stdout(io.StringIO()):
            _, config = quantize_model(
                model, {}, options.q_group_size, options.q_bits, options.q_mode, predicate
            )
        if not quantized_layers(model):
            group_size = config["quantization"]["group_size"]
            raise ValueError(
                f"No layer's input width is a multiple of the group size ({group_size}): choose a "
                "smaller one, or do not quantise"
            )
        return config["quantization"]
    packed = source.packed_layers
    if options.dequantize and not packed:
        raise ValueError("The source is not quantised, so there is nothing to dequantise")
    if options.dequantize or not packed:
        return None
    nn.quantize(model, class_predicate=lambda path, _: packed.get(path, False))
    return source.quantization


def build_skeleton(source: Source, options: QuantizeOptions) -> Skeleton:
    """Plan the conversion of ``source`` with ``options``.

    Args:
        source: an opened source, of which no tensor is read.
        options: dtype and quantisation of the result.

    Raises:
        ValueError: if the source's tensors do not fit its config, or ``options`` do not fit the
            source.
    """
    options.check()
    model = _build_model(source)
    requested = getattr(mx, options.dtype) if options.dtype else None
    dtypes = {
        name: stored_dtype(source, name, requested) for name, _ in tree_flatten(model.parameters())
    }
    model.update(
        tree_map_with_path(
            lambda name, value: mx.zeros(value.shape, dtypes[name]), model.parameters()
        )
    )
    quantization = _quantize(model, source, options)
    return Skeleton(
        tensors=dict(tree_flatten(model.parameters())),
        dtypes=dtypes,
        layers=quantized_layers(model),
        quantization=quantization,
        bits_per_weight=compute_bits_per_weight(model),
    )
