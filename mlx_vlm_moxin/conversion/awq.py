"""Activation-aware scaling (AWQ) by mlx-vlm; it needs the whole model in memory."""

import contextlib
import io
from dataclasses import replace
from importlib.metadata import version

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin.moxin import Model

from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.skeleton import build_skeleton
from mlx_vlm_moxin.checkpoints.sources import Source
from mlx_vlm_moxin.checkpoints.tensor_values import compute_tensors
from mlx_vlm_moxin.checkpoints.tensors import LazyTensor


def apply_awq(source: Source, options: QuantizeOptions, quiet: bool = False) -> Source:
    """Scale the decoder's weights of ``source`` for the quantisation in ``options``.

    mlx-vlm has no public function for this step between loading a checkpoint and writing it.

    Args:
        source: what is converted; its tensors are loaded into memory.
        options: bits, group size and calibration.
        quiet: drop what mlx-vlm prints.

    Returns:
        The same source with scaled, unquantised tensors.

    Raises:
        ValueError, OSError: see ``skeleton.build_skeleton`` and
            ``tensor_values.compute_tensors``.
        RuntimeError: if this version of mlx-vlm has no AWQ.
    """
    try:
        from mlx_vlm.convert import _apply_awq_calibration
    except ImportError as error:
        raise RuntimeError(
            f"--quant-method awq: mlx-vlm {version('mlx-vlm')} has no "
            "mlx_vlm.convert._apply_awq_calibration; use --quant-method rtn"
        ) from error
    unpacked = QuantizeOptions(dtype=options.dtype, dequantize=bool(source.quantization))
    model = Model(source.config)
    model.load_weights(list(compute_tensors(source, build_skeleton(source, unpacked))))
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
    # Evaluated here: other threads read these arrays, and cannot evaluate this thread's graph.
    mx.eval(model.parameters())
    tensors = {name: LazyTensor.of(value) for name, value in tree_flatten(model.parameters())}
    return replace(source, tensors=tensors, quantization=None, dtype=None)
