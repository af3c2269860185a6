"""What the tests of both kinds of CUDA kernels share."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_vlm.models.cache import KVCache
from mlx_vlm.models.moxin import language
from mlx_vlm.models.moxin.config import TextConfig

needs_gpu = pytest.mark.skipif(
    not mx.cuda.is_available(), reason="the kernels run on NVIDIA GPUs only"
)
# The kernels round less often than the modules do; the modules' own error is the measure.
MAX_ERROR_RATIO = 1.5


def relative_error(actual: mx.array, expected: mx.array) -> float:
    """Norm of the difference over that of ``expected``, in float32."""
    difference = actual.astype(mx.float32) - expected
    return (mx.linalg.norm(difference) / mx.linalg.norm(expected)).item()


CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 576,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 300,
    "sliding_window": 1024,
}


def random_parameter(path, parameter):
    noise = mx.random.normal(parameter.shape)
    return 1 + 0.2 * noise if "norm" in path else noise / parameter.shape[-1] ** 0.5


def make_decoder(dtype=mx.bfloat16, bits=16, group_size=64, mode="affine", **config):
    mx.random.seed(0)
    model = language.LanguageModel(TextConfig(**CONFIG | config))
    model.update(tree_map_with_path(random_parameter, model.parameters()))
    model.set_dtype(dtype)
    if bits < 16:
        is_linear = {"class_predicate": lambda path, layer: isinstance(layer, nn.Linear)}
        nn.quantize(model, group_size, bits, mode=mode, **is_linear)
    model.eval()
    return model


def unpacked(model):
    """The same decoder with its weights in float32."""
    weights = dict(tree_flatten(model.parameters()))
    for path, layer in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        if isinstance(layer, nn.QuantizedLinear):
            scales, biases = (weights.pop(f"{path}.{name}") for name in ("scales", "biases"))
            floats = (array.astype(mx.float32) for array in (scales, biases))
            weights[f"{path}.weight"] = mx.dequantize(
                layer.weight, *floats, layer.group_size, layer.bits
            )
    model = language.LanguageModel(model.config)
    model.load_weights([(path, array.astype(mx.float32)) for path, array in weights.items()])
    model.eval()
    return model


def filled_cache(length, dtype=mx.bfloat16, batch=1):
    cache = []
    for layer in range(CONFIG["num_hidden_layers"]):
        mx.random.seed(layer + 1)
        shape = (batch, CONFIG["num_key_value_heads"], length, CONFIG["head_dim"])
        cache.append(KVCache())
        cache[-1].update_and_fetch(*(mx.random.normal(shape).astype(dtype) for _ in range(2)))
    return cache
