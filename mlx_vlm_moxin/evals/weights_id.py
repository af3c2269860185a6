"""A short id of a model's weights, independent of their path: equal weights have equal ids.

It prevents reusing answers of another checkpoint that used to be at the same path.
"""

import hashlib

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

# Sampled values per tensor; training or quantising a tensor changes all of its values.
_SAMPLES = 64
_DIGITS = 16


def weights_id(model: nn.Module) -> str:
    """16 hexadecimal digits from names, shapes, dtypes and a sample of the values."""
    digest = hashlib.sha256()
    samples = []
    for name, value in tree_flatten(model.parameters()):
        digest.update(f"{name} {value.shape} {value.dtype}\n".encode())
        # Evenly spaced and deterministic.
        places = np.linspace(0, value.size - 1, min(_SAMPLES, value.size)).astype(np.int64)
        samples.append(value.reshape(-1)[mx.array(places)].view(mx.uint8))
    mx.eval(samples)
    for sample in samples:
        digest.update(np.array(sample).tobytes())
    return digest.hexdigest()[:_DIGITS]
