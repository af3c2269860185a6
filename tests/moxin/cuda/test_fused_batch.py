"""The step of a few sequences in one CUDA kernel: when it is used, and what it computes."""

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import (
    CONFIG,
    batch_cache,
    check,
    empty,
    filled_cache,
    make_decoder,
    needs_gpu,
    recording,
)
from mlx_vlm.models.cache import BatchKVCache, KVCache, RotatingKVCache
from mlx_vlm.models.moxin.cuda import (
    batch_tiling,
    decoder_sizes,
    device,
    fused_batch,
    kernel,
    kv_cache,
)
from mlx_vlm.models.moxin.cuda.projections import Format

# Multiples of what a step of a product reads.
WIDE = {"intermediate_size": 640}


def supports(model, inputs, inputs_embeds, cache):
    step = fused_batch.FusedBatch(model.model, model.lm_head)
    return step.supports(inputs, inputs_embeds, cache, decoder_sizes.read_sizes(model.model))


@pytest.mark.parametrize(
    ("shape", "cache", "is_supported"),
    [
        ((8, 1), lambda: filled_cache(10, batch=8), True),
        ((3, 1), lambda: batch_cache(10, [0, 4, 2]), True),
        ((1, 1), lambda: batch_cache(10, [0]), True),
        ((9, 1), lambda: filled_cache(10, batch=9), False),
        ((3, 2), lambda: filled_cache(10, batch=3), False),
        ((3, 1), empty, False),
        ((3, 1), lambda: empty(lambda: BatchKVCache([0, 1, 0])), False),
        ((3, 1), lambda: empty(lambda: RotatingKVCache(64)), False),
        ((3, 1), lambda: filled_cache(10, mx.float32, batch=3), False),
        ((3, 1), lambda: None, False),
    ],
    ids=["eight", "batch", "one", "nine", "two tokens", "empty", "empty batch", "rotating"]
    + ["dtype", "no cache"],
)
def test_one_token_of_up_to_eight_sequences_is_supported(
    shape, cache, is_supported, kernels_everywhere
):
    model = make_decoder(**WIDE)
    assert supports(model, mx.ones(shape, mx.int32), None, cache()) is is_supported


@pytest.mark.parametrize(
    ("config", "is_supported"),
    [
        (WIDE, True),
        (WIDE | {"bits": 8}, True),
        (WIDE | {"bits": 4, "group_size": 32}, True),
        (WIDE | {"bits": 4, "group_size": 128}, False),
        ({"intermediate_size": 576}, False),
        (WIDE | {"hidden_size": 6272}, False),
    ],
    ids=["bf16", "8 bits", "groups of 32", "groups of 128", "width", "registers"],
)
def test_formats_and_widths_that_the_kernel_reads(config, is_supported, kernels_everywhere):
    model, inputs = make_decoder(**config), mx.ones((3, 1), mx.int32)
    assert supports(model, inputs, None, filled_cache(10, batch=3)) is is_supported


def test_layers_with_several_formats_and_small_gpus_use_other_kernels(
    kernels_everywhere, monkeypatch
):
    inputs, cache = mx.ones((3, 1), mx.int32), filled_cache(10, batch=3)
    model = make_decoder(**WIDE)
    mlp = model.layers[1].mlp
    mlp.down_proj = mlp.down_proj.to_quantized(64, 8)
    assert not supports(model, inputs, None, cache)
    monkeypatch.setattr(device, "max_shared_memory", lambda: 60 * 1024)
    assert not supports(make_decoder(**WIDE), inputs, None, cache)


@pytest.mark.parametrize(("heads", "at_once"), [(32, 2), (16, 1)])
def test_heads_share_keys_unless_each_can_have_a_multiprocessor(heads, at_once, monkeypatch):
    monkeypatch.setattr(device, "multiprocessors", lambda: 132)
    monkeypatch.setattr(device, "max_shared_memory", lambda: 227 * 1024)
    sizes = decoder_sizes.DecoderSizes(
        mx.bfloat16, 4096, 7168, heads, heads // 4, 128, 0, 1e-5, 1e4
    )
    assert batch_tiling.find_tiling(sizes, Format(4, 64)).heads == at_once


@pytest.mark.parametrize(("bits", "most"), [(16, 2048), (8, 4096), (4, 4096)])
def test_long_caches_use_other_kernels(bits, most, kernels_everywhere):
    model, inputs = make_decoder(bits=bits, **WIDE), mx.ones((2, 1), mx.int32)
    assert supports(model, inputs, None, filled_cache(most - 1, batch=2))
    assert not supports(model, inputs, None, filled_cache(most, batch=2))


def test_a_batch_goes_on_in_other_kernels_when_its_cache_is_long(kernels_everywhere, monkeypatch):
    calls = []
    monkeypatch.setattr(kernel, "build", recording(calls))
    monkeypatch.setattr(fused_batch, "MAX_POSITIONS", {16: 12})
    model, cache = make_decoder(**WIDE, vocab_size=256), filled_cache(10, batch=2)
    built = []
    for _ in range(3):
        model(mx.ones((2, 1), mx.int32), cache=cache)
        built.append([name for name in calls if name != "narrow_matmul"][:1])
        calls.clear()
    # A graph is kept, so that the second step builds nothing.
    assert built == [["fused_batch"], [], ["step_attention"]]
    assert cache[0].offset == 13


@pytest.mark.parametrize("padding", [None, [0, 4, 2]], ids=["plain", "batch"])
def test_many_layers_are_one_launch(padding, kernels_everywhere, monkeypatch):
    calls = []
    monkeypatch.setattr(kernel, "build", recording(calls))
    monkeypatch.setattr(kv_cache, "gather_caches", plain_kernels.gather_caches)
    model = make_decoder(**WIDE, vocab_size=256)
    cache = filled_cache(10, batch=3) if padding is None else batch_cache(10, padding)
    logits = model(mx.ones((3, 1), mx.int32), cache=cache).logits
    assert calls == ["fused_batch", "narrow_matmul"]
    assert logits.shape == (3, 1, 256)
    assert [layer.size() for layer in cache] == [11, 11]
    kind = KVCache if padding is None else BatchKVCache
    assert all(type(layer) is kind for layer in cache)


def test_a_batch_goes_on_in_the_arrays_that_it_has(kernels_everywhere, monkeypatch):
    monkeypatch.setattr(kernel, "build", recording([]))
    model, cache = make_decoder(**WIDE), filled_cache(10, batch=2)
    model(mx.ones((2, 1), mx.int32), cache=cache)
    first = cache[0].keys
    model(mx.ones((2, 1), mx.int32), cache=cache)
    assert first.shape == cache[0].keys.shape
    assert cache[0].offset == 12


@needs_gpu
@pytest.mark.parametrize(
    ("dtype", "bits", "group_size", "batch", "config"),
    [
        (mx.bfloat16, 16, 64, 8, {}),
        (mx.float16, 16, 64, 3, {}),
        (mx.bfloat16, 8, 64, 8, {}),
        (mx.float16, 8, 32, 2, {}),
        (mx.bfloat16, 4, 64, 5, {}),
        (mx.float16, 4, 32, 8, {}),
        (mx.float16, 4, 64, 6, {}),
        (mx.bfloat16, 16, 64, 4, {"sliding_window": 20}),
        (mx.bfloat16, 8, 64, 8, {"num_key_value_heads": 8}),
        (mx.bfloat16, 8, 64, 7, {"hidden_size": 2176, "num_attention_heads": 34}),
    ],
    ids=[
        "bf16",
        "f16",
        "8 bits",
        "8 bits f16",
        "4 bits",
        "4 bits f16",
        "groups f16",
        "window",
        "mha",
        "wide",
    ],
)
def test_steps_are_as_close_to_float32_as_the_modules(
    dtype, bits, group_size, batch, config, monkeypatch
):
    padding = [0, 3, 11, 1, 0, 2, 5, 29][:batch]
    heads = config.get("num_key_value_heads", CONFIG["num_key_value_heads"])

    def cache(kind):
        made = []
        for layer in range(CONFIG["num_hidden_layers"]):
            mx.random.seed(layer + 1)
            shape = (batch, heads, 30, CONFIG["head_dim"])
            made.append(BatchKVCache(padding))
            made[-1].update_and_fetch(*(mx.random.normal(shape).astype(kind) for _ in range(2)))
        return made

    check(dtype, bits, group_size, cache, 3 * [(batch, 1)], monkeypatch, **WIDE | config)


@needs_gpu
def test_steps_are_repeatable():
    model, results = make_decoder(bits=8, **WIDE), []
    for _ in range(5):
        cache = filled_cache(200, batch=8)
        logits = [model(mx.full((8, 1), token), cache=cache).logits for token in (3, 5, 9)]
        results.append(mx.concatenate(logits))
    assert all(mx.array_equal(result, results[0]).item() for result in results)
