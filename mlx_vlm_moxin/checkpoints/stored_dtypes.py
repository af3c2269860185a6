"""The dtype of each tensor that a conversion writes, before any layer is quantised."""

import mlx.core as mx
from mlx_vlm.utils import MODEL_CONVERSION_DTYPES

from mlx_vlm_moxin.checkpoints.layer_settings import split_name
from mlx_vlm_moxin.checkpoints.sources import Source
from mlx_vlm_moxin.checkpoints.tensors import is_floating


def stored_dtype(source: Source, name: str, requested: mx.Dtype | None) -> mx.Dtype:
    """dtype of the parameter ``name``.

    The first of these that is known: the requested dtype; for a packed layer, the dtype of its
    scales; the source's default; the tensor's dtype in the source.
    """
    if requested is not None:
        return requested
    path, part = split_name(name)
    if path in source.packed_layers and part == "weight":
        # The mx and nv formats store scales as bytes.
        scales = source.tensors[f"{path}.scales"]
        return scales.dtype if is_floating(scales) else mx.bfloat16
    if source.dtype in MODEL_CONVERSION_DTYPES:
        return getattr(mx, source.dtype)
    return source.tensors[name].dtype
