"""Which tensors a conversion writes, and how each comes from those of the source.

mlx-vlm's own quantiser runs on a model whose parameters are never computed. What it
leaves there are the names, shapes and dtypes of the output and the settings of every
quantised layer; the values then come one tensor at a time from the source.
"""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_vlm.convert import mixed_quant_predicate_builder
from mlx_vlm.models.moxin.moxin import Model
from mlx_vlm.quant_utils import compute_bits_per_weight, quantize_model
from mlx_vlm.utils import MODEL_CONVERSION_DTYPES, skip_multimodal_module

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.sources import Source
from mlx_vlm_moxin.checkpoints.sources.base import MALFORMED, malformed
from mlx_vlm_moxin.checkpoints.tensor_checks import (
    PACKED_PARTS,
    Settings,
    check_depth,
    check_finite,
    check_tensors,
    is_floating,
    layer_settings,
    split_name,
)

_NOT_FINITE = "has values that are not finite (NaN, infinity); the source is damaged"
_TOO_LARGE = "has values beyond the range of float16; use --dtype bfloat16"


def _quantized_layers(model: Model) -> dict[str, Settings]:
    return {
        path: {name: getattr(module, name) for name in ("group_size", "bits", "mode")}
        for path, module in model.named_modules()
        if hasattr(module, "bits")
    }


class Plan:
    """The output's tensors, each computed from the source when it is asked for.

    Attributes:
        outputs: unevaluated arrays with the names, shapes and dtypes of what is written,
            in mlx-vlm's order.
        quantization: what config.json says about it; None if nothing is quantised.
        bits_per_weight: of ``outputs``, scales and biases included.
        source_bytes: size of what is read for it in all.
        bytes_read: size of what has been read so far.

    Raises:
        ValueError: if the source's tensors do not fit its config, or ``options`` it.
    """

    def __init__(self, source: Source, options: QuantizeOptions):
        options.check()
        self._tensors = source.tensors
        self._packed = {
            path: layer_settings(source.quantization, path)
            for path, part in map(split_name, source.tensors)
            if part == "scales"
        }
        check_depth(source.config, len(source.tensors))
        try:
            model = Model(source.config)
        except (*MALFORMED, RuntimeError, ValueError) as error:
            raise ValueError(malformed(str(source.directory), error)) from error
        check_tensors(source.tensors, self._packed, model)
        self._explicit = getattr(mx, options.dtype) if options.dtype else None
        self._dtypes = {
            name: self._dtype(name, source.dtype) for name, _ in tree_flatten(model.parameters())
        }
        model.update(
            tree_map_with_path(
                lambda name, value: mx.zeros(value.shape, self._dtypes[name]), model.parameters()
            )
        )
        self.quantization = self._quantize(model, source.quantization, options)
        self._settings = _quantized_layers(model)
        self._computed: dict[str, mx.array] = {}
        self.outputs: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
        self.bits_per_weight: float = compute_bits_per_weight(model)
        self.bytes_read = 0
        self.source_bytes = sum(tensor.nbytes for tensor in source.tensors.values())

    @property
    def requantizes(self) -> bool:
        """Whether a layer is packed in the source and packed otherwise in the output."""
        return any(
            self._packed.get(path, settings) != settings
            for path, settings in self._settings.items()
        )

    def _dtype(self, name: str, default: str | None) -> mx.Dtype:
        """dtype of an unpacked parameter: asked for, by default, or as in the source."""
        path, part = split_name(name)
        if self._explicit is not None:
            return self._explicit
        if path in self._packed and part == "weight":
            # The mx and nv formats have bytes as scales.
            scales = self._tensors[f"{path}.scales"]
            return scales.dtype if is_floating(scales) else mx.bfloat16
        if default in MODEL_CONVERSION_DTYPES:
            return getattr(mx, default)
        return self._tensors[name].dtype

    def _quantize(
        self, model: Model, quantization: dict[str, Any] | None, options: QuantizeOptions
    ) -> dict[str, Any] | None:
        """Quantise the layers of ``model`` as asked, or as the source has them."""
        if options.quantize:
            if options.quant_predicate:
                predicate = mixed_quant_predicate_builder(options.quant_predicate, model)
            else:
                predicate = _default_predicate(model)
            with contextlib.redirect_stdout(io.StringIO()):
                _, config = quantize_model(
                    model, {}, options.q_group_size, options.q_bits, options.q_mode, predicate
                )
            if not _quantized_layers(model):
                raise ValueError("No layer's input width is a multiple of the group size")
            return config["quantization"]
        if options.dequantize and not self._packed:
            raise ValueError("There is nothing to dequantise: the source is not quantised")
        if options.dequantize or not self._packed:
            return None
        nn.quantize(model, class_predicate=lambda path, _: self._packed.get(path, False))
        return quantization

    def _read(self, name: str) -> mx.array:
        value = self._tensors[name].load()
        self.bytes_read += self._tensors[name].nbytes
        return check_finite(name, value, _NOT_FINITE)

    def _cast(self, name: str, value: mx.array, dtype: mx.Dtype) -> mx.array:
        value = value.astype(dtype)
        return check_finite(name, value, _TOO_LARGE) if dtype == mx.float16 else value

    def _carry(self, name: str) -> mx.array:
        """A packed tensor as it is, unless a dtype was asked for."""
        value = self._read(name)
        if self._explicit is None or not is_floating(value):
            return value
        return self._cast(name, value, self._explicit)

    def _load(self, name: str) -> mx.array:
        """A parameter of the model that is not quantised, unpacked if need be."""
        path, part = split_name(name)
        if path in self._packed and part == "weight":
            names = [f"{path}.{part}" for part in PACKED_PARTS]
            parts = [self._read(name) for name in names if name in self._tensors]
            value = mx.dequantize(*parts, **self._packed[path])
        else:
            value = self._read(name)
        return self._cast(name, value, self._dtypes[name])

    def compute(self, name: str) -> mx.array:
        """The value of one of ``outputs``.

        Raises:
            OSError: if the source cannot be read.
            ValueError: naming a tensor with values that are not finite.
        """
        path, part = split_name(name)
        if path not in self._settings or part not in PACKED_PARTS:
            return self._load(name)
        if self._packed.get(path) == self._settings[path]:
            return self._carry(name)
        if name not in self._computed:
            parts = mx.quantize(self._load(f"{path}.weight"), **self._settings[path])
            self._computed = {f"{path}.{part}": value for part, value in zip(PACKED_PARTS, parts)}
        return self._computed.pop(name)


def _default_predicate(model: Model) -> Callable[[str, nn.Module], bool]:
    """The layers that ``mlx_vlm.convert`` quantises: the model's choice, never vision."""
    return lambda path, module: (
        not skip_multimodal_module(path) and model.quant_predicate(path, module)
    )
