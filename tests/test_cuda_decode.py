"""The decoding step in CUDA kernels: when it is taken, and what it computes on a GPU."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from cuda_support import MAX_ERROR_RATIO, needs_gpu, relative_error
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.tuner.lora import LoRALinear
from mlx_vlm.models.cache import BatchKVCache, KVCache
from mlx_vlm.models.moxin import cuda_decode, cuda_kernels, language
from mlx_vlm.models.moxin.config import TextConfig

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


def test_other_devices_use_the_modules():
    assert mx.cuda.is_available() or not cuda_decode.supports(make_decoder())


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("bits", "group_size"), [(16, 64), (8, 32), (8, 64), (4, 64), (4, 128)])
def test_supported_formats(dtype, bits, group_size, kernels_everywhere):
    if group_size == 128:
        model = make_decoder(dtype, bits, group_size, intermediate_size=640)
    else:
        model = make_decoder(dtype, bits, group_size)
    assert cuda_decode.supports(model)


def adapter(model):
    layer = model.model.layers[1].self_attn
    layer.q_proj = LoRALinear.from_base(layer.q_proj)
    return model


def mixed(model):
    layer = model.model.layers[1].mlp
    layer.up_proj = layer.up_proj.to_quantized(64, 8)
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: make_decoder(mx.float32),
        lambda: make_decoder(bits=6),
        lambda: make_decoder(bits=4, group_size=32, mode="mxfp4"),
        lambda: make_decoder(head_dim=32),
        lambda: make_decoder(rope_traditional=True),
        lambda: adapter(make_decoder()),
        lambda: mixed(make_decoder()),
        lambda: make_decoder().train(),
    ],
    ids=["float32", "6bit", "mxfp4", "narrow heads", "rope", "adapter", "mixed", "training"],
)
def test_what_the_kernels_do_not_compute_goes_through_the_modules(model, kernels_everywhere):
    assert not cuda_decode.supports(model())


@pytest.fixture
def steps(monkeypatch):
    """Calls of the step, which gives no logits."""
    calls = []
    monkeypatch.setattr(language, "supports", lambda model: True)
    monkeypatch.setattr(
        cuda_decode.DecodeStep, "__call__", lambda self, inputs, cache: calls.append(inputs.shape)
    )
    return calls


def test_one_token_after_others_takes_the_step(steps):
    make_decoder()(mx.array([[5]]), cache=filled_cache(10))
    assert steps == [(1, 1)]


@pytest.mark.parametrize(
    "arguments",
    [
        lambda: {"inputs": mx.array([[5, 6]]), "cache": filled_cache(10)},
        lambda: {"inputs": mx.array([[5], [6]]), "cache": filled_cache(10, batch=2)},
        lambda: {"inputs": mx.array([[5]]), "cache": [KVCache() for _ in range(2)]},
        lambda: {"inputs": mx.array([[5]]), "cache": [BatchKVCache([0]) for _ in range(2)]},
        lambda: {"inputs": mx.array([[5]]), "cache": filled_cache(10, mx.float32)},
        lambda: {"inputs": mx.array([[5]])},
        lambda: {
            "inputs": mx.array([[5]]),
            "inputs_embeds": mx.zeros((1, 1, 256), mx.bfloat16),
            "cache": filled_cache(10),
        },
        lambda: {
            "inputs": mx.array([[5]]),
            "cache": filled_cache(10),
            "capture_layer_ids": [0],
        },
    ],
    ids=["prompt", "two rows", "empty", "batch", "dtype", "no cache", "embeddings", "taps"],
)
def test_everything_else_goes_through_the_modules(arguments, steps):
    output = make_decoder()(**arguments())
    assert output.logits.size
    assert steps == []


def test_a_decoder_that_is_changed_is_asked_about_again_with_the_next_prompt(
    steps, kernels_everywhere, monkeypatch
):
    monkeypatch.setattr(language, "supports", cuda_decode.supports)
    model, cache = make_decoder(), filled_cache(10)
    model(mx.array([[5]]), cache=cache)
    adapter(model)
    model(mx.array([[5, 6]]), cache=cache)
    model(mx.array([[5]]), cache=cache)
    assert steps == [(1, 1)]


def test_a_change_within_an_answer_is_one_clear_error(kernels_everywhere):
    step = cuda_decode.DecodeStep(mixed(make_decoder()))
    layer = step.model.model.layers[1].mlp
    with pytest.raises(ValueError, match="start again with a prompt"):
        step._matrices(gate=layer.gate_proj, up=layer.up_proj)


def decode(model, cache, tokens):
    logits = [model(mx.array([[token]]), cache=cache).logits for token in tokens]
    return mx.concatenate(logits, axis=1).astype(mx.float32)


@needs_gpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("bits", "group_size"), [(16, 64), (8, 64), (8, 32), (4, 64)])
# In the first step of the cache; at its end; over several blocks; beyond the window.
@pytest.mark.parametrize("length", [3, 255, 700, 2000])
def test_logits_and_cache_are_as_close_to_float32_as_the_modules(
    dtype, bits, group_size, length, monkeypatch
):
    model, tokens = make_decoder(dtype, bits, group_size), [7, 8, 9]
    assert cuda_decode.supports(model)
    exact = filled_cache(length, dtype)
    for layer in exact:
        layer.keys, layer.values = (x.astype(mx.float32) for x in (layer.keys, layer.values))
    ours, modules = filled_cache(length, dtype), filled_cache(length, dtype)
    expected = decode(unpacked(model), exact, tokens)
    actual = decode(model, ours, tokens)
    assert model._decode_step is not None
    monkeypatch.setattr(language, "supports", lambda model: False)
    allowed = decode(make_decoder(dtype, bits, group_size), modules, tokens)
    limit = MAX_ERROR_RATIO * relative_error(allowed, expected)
    assert relative_error(actual, expected) <= limit
    for layer, other, true in zip(ours, modules, exact):
        assert layer.offset == other.offset == length + len(tokens)
        for name in ("keys", "values"):
            actual, allowed, expected = (
                getattr(cache, name)[..., : cache.offset, :] for cache in (layer, other, true)
            )
            limit = MAX_ERROR_RATIO * relative_error(allowed, expected)
            assert relative_error(actual, expected) <= limit


@needs_gpu
def test_a_kernel_that_does_not_compile_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)does not compile for sm_90.*undefined"):
        cuda_kernels.compile_source("int x = undefined_name;", "sm_90")
