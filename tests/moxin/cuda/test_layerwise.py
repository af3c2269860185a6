"""Which prompts and batches the kernels compute layer by layer."""

import mlx.core as mx
import pytest
from cuda_support import (
    CONFIG,
    batch_cache,
    empty,
    filled,
    filled_cache,
    make_decoder,
    uses_kernels,
)
from mlx_vlm.models.cache import (
    BatchKVCache,
    CacheList,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)
from mlx_vlm.models.moxin.cuda import (
    decoder_layers,
    decoder_sizes,
    device,
    fused_prompt,
    fused_step,
    layerwise,
)


@pytest.fixture
def passes(kernels_everywhere, monkeypatch):
    """Records the shapes of passes by kernels, which return no logits."""
    calls = []

    def call(self, inputs, inputs_embeds, cache, logits_to_keep, sizes):
        calls.append(inputs.shape)
        return mx.zeros((*inputs.shape, 1))

    for fused in (fused_step.FusedStep, fused_prompt.FusedPrompt):
        monkeypatch.setattr(fused, "supports", lambda *arguments: False)
    monkeypatch.setattr(layerwise.Layerwise, "__call__", call)
    return calls


@pytest.mark.parametrize(
    ("shape", "cache"),
    [
        ((1, 2), lambda: filled_cache(10)),
        ((1, 512), empty),
        ((1, 513), empty),
        ((3, 1), lambda: filled_cache(10, batch=3)),
        ((3, 1), lambda: batch_cache(10, [0, 4, 2])),
        ((1, 1), lambda: batch_cache(10, [0])),
        ((2, 30), lambda: empty(lambda: BatchKVCache([0, 3]))),
    ],
    ids=["question", "prompt", "long", "rows", "batch", "batch of one", "batch of prompts"],
)
def test_new_tokens_of_plain_and_batch_caches_use_the_kernels(shape, cache, passes):
    make_decoder()(mx.ones(shape, mx.int32), cache=cache())
    assert passes == [shape]


def test_embeddings_use_the_kernels(passes):
    inputs_embeds = mx.zeros((1, 5, CONFIG["hidden_size"]), mx.bfloat16)
    make_decoder()(mx.ones((1, 5), mx.int32), inputs_embeds, cache=empty())
    assert passes == [(1, 5)]


@pytest.mark.parametrize(
    "arguments",
    [
        lambda: {"inputs": mx.ones((1, 5), mx.int32), "cache": empty(lambda: RotatingKVCache(64))},
        lambda: {"inputs": mx.ones((1, 5), mx.int32), "cache": empty(QuantizedKVCache)},
        lambda: {"inputs": mx.ones((2, 5), mx.int32), "cache": filled_cache(10, mx.float32, 2)},
        lambda: {"inputs": mx.ones((1, 5), mx.int32)},
        lambda: {
            "inputs": mx.ones((1, 5), mx.int32),
            "inputs_embeds": mx.zeros((1, 5, CONFIG["hidden_size"])),
            "cache": empty(),
        },
        lambda: {
            "inputs": mx.ones((1, 5), mx.int32),
            "cache": empty(),
            "capture_layer_ids": [0],
        },
    ],
    ids=["rotating", "quantised", "dtype", "no cache", "embeddings' dtype", "taps"],
)
def test_everything_else_goes_through_the_modules(arguments, passes):
    output = make_decoder()(**arguments())
    assert output.logits.shape[-1] == CONFIG["vocab_size"]
    assert passes == []


def test_a_decoder_that_was_changed_leaves_the_next_prompt_to_the_modules(
    kernels_everywhere, monkeypatch
):
    model, ids, cache, modules = make_decoder(), mx.ones((1, 5), mx.int32), empty(), empty()
    assert decoder_layers.supports(model.model)
    model.train()
    logits = model(ids, cache=cache).logits
    assert not uses_kernels(model)
    monkeypatch.setattr(device, "enabled", lambda: False)
    assert mx.array_equal(logits, model(ids, cache=modules).logits).item()
    assert mx.array_equal(filled(cache[1], "keys"), filled(modules[1], "keys")).item()


def test_caches_of_other_kinds_are_not_supported(kernels_everywhere):
    model, ids = make_decoder(), mx.ones((1, 5), mx.int32)
    sizes = decoder_sizes.read_sizes(model.model)
    run = layerwise.Layerwise(model.model, model.lm_head)
    assert run.supports(ids, None, empty(), sizes)
    assert not run.supports(ids, None, [CacheList(KVCache())], sizes)
    assert not run.supports(ids, None, [KVCache(), RotatingKVCache(64)], sizes)
