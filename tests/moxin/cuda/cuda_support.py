"""Helpers of the tests of the CUDA kernels."""

import contextlib
from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_vlm.models.cache import BatchKVCache, KVCache
from mlx_vlm.models.moxin import language
from mlx_vlm.models.moxin.cuda import (
    activations,
    arranged,
    cubin_cache,
    decoder,
    device,
    embeddings,
    exchange,
    fused_batch,
    fused_prompt,
    fused_step,
    kernel,
    kv_cache,
    layerwise_kernels,
    matmul_kernels,
    patch_embedding,
    prompt_matmul,
    resize_kernels,
    step_attention,
    tower_kernel,
)
from mlx_vlm.models.moxin.text_config import TextConfig
from PIL import Image

needs_gpu = pytest.mark.skipif(
    not mx.cuda.is_available(), reason="the kernels run on NVIDIA GPUs only"
)
needs_hopper = pytest.mark.skipif(
    not mx.cuda.is_available() or mx.device_info()["architecture"] not in ("sm_90", "sm_90a"),
    reason="this kernel runs on GPUs of compute capability 9.0 only",
)
# The kernels round less often than the modules, so the modules' error is the measure.
MAX_ERROR_RATIO = 1.5


@contextlib.contextmanager
def computing_on(device: mx.DeviceType) -> Iterator[None]:
    """MLX computes on this device by default."""
    before = mx.default_device()
    mx.set_default_device(device)
    try:
        yield
    finally:
        mx.set_default_device(before)


def relative_error(actual: mx.array, expected: mx.array) -> float:
    """Norm of the difference over that of ``expected``, in float32."""
    difference = actual.astype(mx.float32) - expected
    return (mx.linalg.norm(difference) / mx.linalg.norm(expected)).item()


def assert_as_close(actual: mx.array, allowed: mx.array, expected: mx.array) -> None:
    """``actual`` has at most ``MAX_ERROR_RATIO`` times the error of ``allowed``."""
    limit = MAX_ERROR_RATIO * relative_error(allowed, expected)
    assert relative_error(actual, expected) <= limit


def assert_caches_as_close(ours: list, modules: list, exact: list) -> None:
    for layer, other, true in zip(ours, modules, exact):
        assert layer.size() == other.size() == true.size()
        for name in ("keys", "values"):
            assert_as_close(*(filled(cache, name) for cache in (layer, other, true)))


def filled(cache, name: str) -> mx.array:
    """Keys or values that a layer's cache holds."""
    return getattr(cache, name)[..., : cache.size(), :]


def in_float32(cache: list) -> list:
    """The caches themselves, their keys and values converted."""
    for layer in cache:
        if layer.keys is not None:
            layer.keys, layer.values = (x.astype(mx.float32) for x in (layer.keys, layer.values))
    return cache


def picture(width: int, height: int, seed: int = 0, extremes: bool = False) -> Image.Image:
    """Noise; of black and white only if ``extremes``."""
    rng = np.random.default_rng(seed)
    shape = height, width, 3
    return Image.fromarray(
        rng.choice(np.uint8([0, 255]), shape) if extremes else rng.integers(0, 256, shape, np.uint8)
    )


def recording(calls: list[str]):
    """A replacement for ``kernel.build``: kernels that return zeros and record their names."""

    def build(entry, constants, inputs, outputs, scalars, **options):
        def kernel(*arrays):
            calls.append(entry)
            assert [array.dtype for array in arrays] == list(inputs)
            return [mx.zeros(shape, dtype) for shape, dtype in outputs.values()]

        return kernel

    return build


# Collected when the tests start, because tests replace some of them.
_KEEPING = (
    activations.gelu_kernel,
    activations.swiglu_kernel,
    arranged.arrange,
    embeddings.embed_tokens,
    embeddings.merge_features,
    exchange.exchange_norm,
    fused_batch.batch_kernel,
    fused_prompt.prompt_kernel,
    fused_step.step_kernel,
    kernel.compiled,
    kv_cache.gather_caches,
    layerwise_kernels.add_norm,
    layerwise_kernels.attend,
    layerwise_kernels.rotate,
    matmul_kernels.multiply,
    matmul_kernels.unpack_weights,
    patch_embedding.embed_patches,
    prompt_matmul.find_order,
    prompt_matmul.multiply,
    resize_kernels.resize_height,
    resize_kernels.resize_width,
    step_attention.step_attention,
    tower_kernel.tower_layers,
)


def forget_kernels() -> None:
    """Drop all kernels that were built in this process."""
    for function in _KEEPING:
        function.cache_clear()
    cubin_cache._futures.clear()


def uses_kernels(model) -> bool:
    """Whether the decoder's last prompt or step was computed by the kernels."""
    engine = decoder.engines.get(model)
    return engine is not None and engine._sizes is not None


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
    if "norm" in path or "gamma" in path:
        return 1 + 0.2 * noise if path.endswith(("weight", "gamma")) else 0.2 * noise
    return noise / parameter[0].size ** 0.5 if parameter.ndim > 1 else 0.2 * noise


def randomised(make, dtype):
    """The module that ``make`` gives, with random parameters, always the same ones."""
    mx.random.seed(0)
    module = make()
    module.update(tree_map_with_path(random_parameter, module.parameters()))
    module.set_dtype(dtype)
    module.eval()
    return module


def make_decoder(dtype=mx.bfloat16, bits=16, group_size=64, mode="affine", **config):
    model = randomised(lambda: language.LanguageModel(TextConfig(**CONFIG | config)), dtype)
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


def filled_cache(length, dtype=mx.bfloat16, batch=1, layers=CONFIG["num_hidden_layers"]):
    cache = []
    for layer in range(layers):
        mx.random.seed(layer + 1)
        shape = (batch, CONFIG["num_key_value_heads"], length, CONFIG["head_dim"])
        cache.append(KVCache())
        cache[-1].update_and_fetch(*(mx.random.normal(shape).astype(dtype) for _ in range(2)))
    return cache


def batch_cache(length, padding, dtype=mx.bfloat16):
    """A batch's cache whose rows begin with ``padding`` hidden tokens."""
    cache = []
    for layer in filled_cache(length, dtype, len(padding)):
        cache.append(BatchKVCache(padding))
        cache[-1].update_and_fetch(*(x[..., :length, :] for x in (layer.keys, layer.values)))
    return cache


def empty(kind=KVCache, layers=CONFIG["num_hidden_layers"]):
    return [kind() for _ in range(layers)]


def run(model, cache, shapes, logits_to_keep=0):
    """Logits of random tokens in passes of these shapes, ``[sum, vocab_size]``."""
    mx.random.seed(7)
    logits = []
    for shape in shapes:
        inputs = mx.random.randint(0, CONFIG["vocab_size"], shape)
        logits.append(model(inputs, cache=cache, logits_to_keep=logits_to_keep).logits)
    return mx.concatenate([part.reshape(-1, CONFIG["vocab_size"]) for part in logits])


def check(dtype, bits, group_size, make_cache, shapes, monkeypatch, **config):
    model = make_decoder(dtype, bits, group_size, **config)
    exact, ours, modules = in_float32(make_cache(dtype)), make_cache(dtype), make_cache(dtype)
    expected, actual = run(unpacked(model), exact, shapes), run(model, ours, shapes)
    assert uses_kernels(model)
    monkeypatch.setattr(device, "enabled", lambda: False)
    plain = unpacked(model)  # MLX takes a minute to compile its packed product for each size
    plain.set_dtype(dtype)
    allowed = run(plain, modules, shapes)
    assert_as_close(actual, allowed, expected)
    assert_caches_as_close(ours, modules, exact)
