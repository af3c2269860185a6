"""A short name for a model's weights, whatever their path: equal weights, equal name.

An answers file must not give the answers of a checkpoint that was at the same path before.
"""

import hashlib

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

# Of each tensor: every weight of a model is changed by training or quantising it.
_SAMPLES = 64
_DIGITS = 16


def weights_id(model: nn.Module) -> str:
    """16 hexadecimal digits from names, shapes, dtypes and a sample of the values."""
    digest = hashlib.sha256()
    samples = []
    for name, value in tree_flatten(model.parameters()):
        digest.update(f"{name} {value.shape} {value.dtype}\n".encode())
        # Evenly spread, and always the same ones.
        places = np.linspace(0, value.size - 1, min(_SAMPLES, value.size)).astype(np.int64)
        samples.append(value.reshape(-1)[mx.array(places)].view(mx.uint8))
    mx.eval(samples)
    for sample in samples:
        digest.update(np.array(sample).tobytes())
    return digest.hexdigest()[:_DIGITS]
