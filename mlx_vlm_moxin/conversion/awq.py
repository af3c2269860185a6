"""Activation-aware scaling (AWQ) by mlx-vlm; it needs the whole model in memory."""

import contextlib
import io
from dataclasses import replace

from mlx.utils import tree_flatten
from mlx_vlm.convert import _apply_awq_calibration
from mlx_vlm.models.moxin.moxin import Model

from mlx_vlm_moxin.checkpoints.plan import Plan
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.sources import Source
from mlx_vlm_moxin.checkpoints.tensors import LazyTensor


def apply_awq(source: Source, options: QuantizeOptions, quiet: bool = False) -> Source:
    """The source with its decoder's weights scaled for the quantisation in ``options``.

    mlx-vlm has no public function between "load a checkpoint" and "write it" for this.

    Raises:
        ValueError, OSError: see :class:`~mlx_vlm_moxin.checkpoints.plan.Plan`.
    """
    plan = Plan(source, QuantizeOptions(dtype=options.dtype, dequantize=bool(source.quantization)))
    model = Model(source.config)
    model.load_weights([(name, plan.compute(name)) for name in plan.outputs])
    with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        _apply_awq_calibration(
            model,
            source.processor,
            source.config.to_dict(),
            model,
            options.q_bits,
            options.q_group_size,
            options.calibration,
            options.calibration_data,
        )
    tensors = {name: LazyTensor.of(value) for name, value in tree_flatten(model.parameters())}
    return replace(source, tensors=tensors, quantization=None, dtype=None)
