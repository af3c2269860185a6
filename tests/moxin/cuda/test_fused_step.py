"""The decoding step in CUDA kernels: when it is used, and its results on a GPU."""

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import (
    CONFIG,
    assert_as_close,
    assert_caches_as_close,
    batch_cache,
    filled_cache,
    in_float32,
    make_decoder,
    needs_gpu,
    recording,
    unpacked,
    uses_kernels,
)
from mlx_vlm.models.cache import BatchKVCache, KVCache
from mlx_vlm.models.moxin.cuda import device, fused_step, kernel, kv_cache, layerwise


@pytest.fixture
def steps(kernels_everywhere, monkeypatch):
    """Records calls of the step, which returns no logits."""
    calls = []
    monkeypatch.setattr(
        fused_step.FusedStep, "__call__", lambda self, inputs, *rest: calls.append(inputs.shape)
    )
    monkeypatch.setattr(layerwise.Layerwise, "supports", lambda *arguments: False)
    return calls


def test_one_token_after_others_uses_the_step(steps):
    make_decoder()(mx.array([[5]]), cache=filled_cache(10))
    assert steps == [(1, 1)]


def test_a_batch_of_one_sequence_uses_the_step(steps):
    make_decoder()(mx.array([[5]]), cache=batch_cache(10, [2]))
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


def test_layers_that_are_packed_alike_are_one_kernel(kernels_everywhere, monkeypatch):
    calls = []
    monkeypatch.setattr(kernel, "build", recording(calls))
    monkeypatch.setattr(kv_cache, "gather_caches", plain_kernels.gather_caches)
    model, cache = make_decoder(num_hidden_layers=21), filled_cache(10, layers=21)
    mlp = model.layers[1].mlp
    mlp.down_proj = mlp.down_proj.to_quantized(64, 8)
    logits = model(mx.array([[5]]), cache=cache).logits
    # One layer, the one with another packing, and 19 more, in two launches; then the head.
    assert calls == ["fused_step", "fused_step", "fused_step", "fused_step", "narrow_matmul"]
    assert logits.shape == (1, 1, CONFIG["vocab_size"])
    assert [layer.offset for layer in cache] == 21 * [11]


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
    exact = in_float32(filled_cache(length, dtype))
    ours, modules = filled_cache(length, dtype), filled_cache(length, dtype)
    expected = decode(unpacked(model), exact, tokens)
    actual = decode(model, ours, tokens)
    assert uses_kernels(model)
    monkeypatch.setattr(device, "enabled", lambda: False)
    allowed = decode(make_decoder(dtype, bits, group_size), modules, tokens)
    assert_as_close(actual, allowed, expected)
    assert [layer.offset for layer in ours] == 2 * [length + len(tokens)]
    assert_caches_as_close(ours, modules, exact)


def replace(layer):
    layer.self_attn.v_proj.biases = 2 * layer.self_attn.v_proj.biases


def write(layer):
    layer.mlp.gate_proj.scales *= 2


def replace_norm(layer):
    layer.post_attention_layernorm.weight = 2 * layer.post_attention_layernorm.weight


@needs_gpu
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("change", [replace, write, replace_norm])
def test_a_step_uses_the_weights_as_they_are(change, bits):
    model, other = make_decoder(bits=bits), make_decoder(bits=bits)
    before = decode(model, filled_cache(10), [7, 8])
    for changed in (model, other):
        change(changed.layers[1])
    after = decode(model, filled_cache(10), [7, 8])
    assert mx.array_equal(after, decode(other, filled_cache(10), [7, 8])).item()
    assert not mx.array_equal(after, before).item()
    assert uses_kernels(model)


@needs_gpu
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("padding", [0, 5, 300])
# Before and after the caches grow, and beyond the window.
@pytest.mark.parametrize("length", [301, 511, 1500])
def test_a_batch_of_one_sequence_ignores_its_padding(bits, padding, length, monkeypatch):
    model, tokens = make_decoder(bits=bits), [7, 8, 9]
    exact, ours, modules = (
        in_float32(batch_cache(length, [padding], dtype))
        if dtype == mx.float32
        else batch_cache(length, [padding], dtype)
        for dtype in (mx.float32, mx.bfloat16, mx.bfloat16)
    )
    expected = decode(unpacked(model), exact, tokens)
    actual = decode(model, ours, tokens)
    assert uses_kernels(model)
    assert [layer.offset.item() for layer in ours] == 2 * [length + len(tokens) - padding]
    monkeypatch.setattr(device, "enabled", lambda: False)
    plain = unpacked(model)
    plain.set_dtype(mx.bfloat16)
    assert_as_close(actual, decode(plain, modules, tokens), expected)
