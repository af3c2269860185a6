"""Short prompts in one CUDA kernel: which are supported, and its results on a GPU."""

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import (
    CONFIG,
    check,
    empty,
    filled,
    filled_cache,
    make_decoder,
    needs_gpu,
    recording,
    relative_error,
    run,
)
from mlx_lm.tuner.lora import LoRALinear
from mlx_vlm.models.cache import BatchKVCache, KVCache, RotatingKVCache
from mlx_vlm.models.moxin.cuda import (
    decoder_layers,
    decoder_sizes,
    device,
    fused_prompt,
    kernel,
    kv_cache,
    layerwise_graph,
)

# A multiple of the values of K that one step of a product reads.
WIDE = {"intermediate_size": 640}


def supports(model, inputs, inputs_embeds, cache):
    prompt = fused_prompt.FusedPrompt(model.model, model.lm_head)
    return prompt.supports(inputs, inputs_embeds, cache, decoder_sizes.read_sizes(model.model))


@pytest.mark.parametrize(
    ("shape", "cache", "is_supported"),
    [
        ((1, 64), lambda: filled_cache(10), True),
        ((1, 1), empty, True),
        ((1, 65), lambda: filled_cache(10), False),
        ((2, 5), lambda: filled_cache(10, batch=2), False),
        ((1, 5), lambda: empty(lambda: BatchKVCache([0])), False),
        ((1, 5), lambda: empty(lambda: RotatingKVCache(64)), False),
        ((1, 5), lambda: filled_cache(10, mx.float32), False),
        ((1, 5), lambda: None, False),
    ],
    ids=["question", "first", "long", "rows", "batch", "rotating", "dtype", "no cache"],
)
def test_few_tokens_of_one_sequence_and_plain_caches_are_supported(
    shape, cache, is_supported, kernels_everywhere
):
    model = make_decoder(**WIDE)
    assert supports(model, mx.ones(shape, mx.int32), None, cache()) is is_supported


def test_widths_and_embeddings_that_the_kernel_does_not_read_are_refused(kernels_everywhere):
    inputs, embeddings = mx.ones((1, 5), mx.int32), mx.zeros((1, 5, CONFIG["hidden_size"]))
    assert not supports(make_decoder(intermediate_size=576), inputs, None, empty())
    model = make_decoder(**WIDE)
    assert not supports(model, inputs, embeddings, empty())
    assert supports(model, inputs, embeddings.astype(mx.bfloat16), empty())


@pytest.mark.parametrize("length", [0, 10, 240])
def test_layers_that_are_packed_alike_are_one_kernel(length, kernels_everywhere, monkeypatch):
    calls = []
    monkeypatch.setattr(kernel, "build", recording(calls))
    monkeypatch.setattr(kv_cache, "gather_caches", plain_kernels.gather_caches)
    monkeypatch.setattr(layerwise_graph, "logits", lambda head, h: head(h))
    model = make_decoder(num_hidden_layers=21, **WIDE)
    mlp = model.layers[1].mlp
    mlp.down_proj = mlp.down_proj.to_quantized(64, 8)
    cache = filled_cache(length, layers=21) if length else [KVCache() for _ in range(21)]
    logits = model(mx.ones((1, 20), mx.int32), cache=cache, logits_to_keep=2).logits
    # Of the first 4 layers one, the one with another packing, and the rest; then 17 more.
    assert calls == ["fused_prompt", "fused_prompt", "fused_prompt", "fused_prompt"]
    assert logits.shape == (1, 2, CONFIG["vocab_size"])
    assert [layer.offset for layer in cache] == 21 * [length + 20]
    assert cache[0].keys.shape[2] == (512 if length == 240 else 256)


def test_a_later_layer_that_is_not_supported_leaves_the_question_to_the_modules(
    kernels_everywhere, monkeypatch
):
    calls = []
    monkeypatch.setattr(kernel, "build", recording(calls))
    monkeypatch.setattr(kv_cache, "gather_caches", plain_kernels.gather_caches)
    monkeypatch.setattr(layerwise_graph, "logits", lambda head, h: head(h))
    model, ids = make_decoder(num_hidden_layers=21, **WIDE), mx.ones((1, 20), mx.int32)
    cache, modules = filled_cache(10, layers=21), filled_cache(10, layers=21)
    model(ids, cache=filled_cache(10, layers=21))
    last = model.layers[20].mlp
    last.down_proj = LoRALinear.from_base(last.down_proj)
    calls.clear()
    logits = model(ids, cache=cache).logits
    assert calls == ["fused_prompt"]
    monkeypatch.setattr(device, "enabled", lambda: False)
    assert mx.array_equal(logits, model(ids, cache=modules).logits).item()
    for layer, other in zip(cache, modules):
        assert mx.array_equal(filled(layer, "keys"), filled(other, "keys")).item()


def test_the_kernel_has_one_block_on_each_multiprocessor(kernels_everywhere, monkeypatch):
    built = []
    monkeypatch.setattr(kernel, "build", lambda *arguments, **options: built.append(options))
    fused_prompt.prompt_kernel.cache_clear()
    model = make_decoder(head_dim=128, **WIDE)
    sizes = decoder_sizes.read_sizes(model.model)
    formats = decoder_layers.read_layers(model.model, sizes)[0].formats
    fused_prompt.prompt_kernel(sizes, formats, 2, 30, 256)
    attributes = {device.MULTIPROCESSOR_COUNT: 128}
    monkeypatch.setattr(device, "attribute", lambda number: attributes.get(number, 100 * 1024))
    fused_prompt.prompt_kernel.cache_clear()
    fused_prompt.prompt_kernel(sizes, formats, 2, 30, 256)
    fused_prompt.prompt_kernel.cache_clear()
    assert [options["blocks"] for options in built] == [132, 128]
    assert supports(model, mx.ones((1, 5), mx.int32), None, empty())


def test_a_gpu_without_enough_shared_memory_is_not_used(kernels_everywhere, monkeypatch):
    monkeypatch.setattr(device, "attribute", lambda number: 64 * 1024)
    model = make_decoder(head_dim=128, **WIDE)
    assert not supports(model, mx.ones((1, 5), mx.int32), None, empty())


@needs_gpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("bits", "group_size"), [(16, 64), (8, 64), (8, 32), (4, 64), (4, 128)])
# A tile of each size.
@pytest.mark.parametrize("length", [5, 30, 64])
def test_a_question_after_others_is_as_close_to_float32_as_the_modules(
    dtype, bits, group_size, length, monkeypatch
):
    def cache(dtype):
        return filled_cache(90, dtype)

    shapes = [(1, length), (1, 1), (1, 3)]
    check(dtype, bits, group_size, cache, shapes, monkeypatch, **WIDE)


@needs_gpu
def test_a_first_prompt_is_as_close_to_float32_as_the_modules(monkeypatch):
    check(mx.bfloat16, 16, 64, lambda dtype: empty(), [(1, 20), (1, 1)], monkeypatch, **WIDE)


@needs_gpu
def test_the_window_hides_older_keys(monkeypatch):
    def cache(dtype):
        return filled_cache(300, dtype)

    check(mx.bfloat16, 16, 64, cache, [(1, 40)], monkeypatch, sliding_window=100, **WIDE)


@needs_gpu
def test_logits_to_keep_are_the_last_ones():
    model, shapes = make_decoder(**WIDE), [(1, 30)]
    every, last = (run(model, filled_cache(90), shapes, keep) for keep in (0, 2))
    assert mx.array_equal(every[-2:], last).item()


@needs_gpu
def test_a_prompt_in_parts_fills_the_cache_like_a_whole_one():
    model = make_decoder(**WIDE)
    whole, parts = filled_cache(250), filled_cache(250)
    ids = mx.arange(40)[None]
    model(ids, cache=whole)
    for part in (ids[:, :3], ids[:, 3:4], ids[:, 4:30], ids[:, 30:]):
        model(part, cache=parts)
    for one, other in zip(whole, parts):
        for name in ("keys", "values"):
            difference = relative_error(filled(other, name), filled(one, name).astype(mx.float32))
            assert difference < 2**-7
