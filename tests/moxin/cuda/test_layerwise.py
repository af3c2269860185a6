"""Prompts and batches layer by layer: when the kernels are used, and what they compute."""

from unittest import mock

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import (
    CONFIG,
    batch_cache,
    check,
    empty,
    filled,
    filled_cache,
    make_decoder,
    needs_gpu,
    relative_error,
    run,
    unpacked,
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
    device,
    fused_prompt,
    fused_step,
    layerwise,
    layerwise_kernels,
)


@pytest.fixture
def passes(kernels_everywhere, monkeypatch):
    """Passes that the kernels computed; they give no logits."""
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
        ((3, 1), lambda: filled_cache(10, batch=3)),
        ((3, 1), lambda: batch_cache(10, [0, 4, 2])),
        ((1, 1), lambda: batch_cache(10, [0])),
        ((2, 30), lambda: empty(lambda: BatchKVCache([0, 3]))),
    ],
    ids=["question", "prompt", "rows", "batch", "batch of one", "batch of prompts"],
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
        lambda: {"inputs": mx.ones((1, 513), mx.int32), "cache": empty()},
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
    ids=["long", "rotating", "quantised", "dtype", "no cache", "embeddings' dtype", "taps"],
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


def test_caches_of_other_kinds_are_not_looked_into(kernels_everywhere):
    model, ids = make_decoder(), mx.ones((1, 5), mx.int32)
    sizes = decoder_layers.read_sizes(model.model)
    run = layerwise.Layerwise(model.model, model.lm_head)
    assert run.supports(ids, None, empty(), sizes)
    assert not run.supports(ids, None, [CacheList(KVCache())], sizes)
    assert not run.supports(ids, None, [KVCache(), RotatingKVCache(64)], sizes)


@pytest.mark.parametrize(("rows", "width", "columns"), [(65, 256, 64), (8, 192, 64), (8, 256, 333)])
def test_products_without_a_kernel(rows, width, columns, kernels_everywhere):
    form = decoder_layers.Format(16, 0)
    assert layerwise_kernels.multiply(mx.bfloat16, form, (columns,), rows, width) is None


@pytest.mark.parametrize(
    ("gigabytes", "bits", "rows", "has_kernel"),
    [(80, 8, 128, True), (80, 8, 129, False), (80, 16, 65, False)]
    + [(12, 8, 512, True), (12, 8, 513, False), (12, 4, 384, True), (12, 4, 385, False)],
)
def test_small_gpus_do_not_unpack_the_weights_of_prompts(
    gigabytes, bits, rows, has_kernel, kernels_everywhere, monkeypatch
):
    monkeypatch.setattr(device, "memory", lambda: gigabytes * 10**9)
    form = decoder_layers.Format(bits, 64)
    assert (layerwise_kernels.find_tiling(form, rows, 4096) is not None) is has_kernel


@pytest.fixture
def kernels_in_mlx(kernels_everywhere, monkeypatch):
    """The kernels in MLX, in float32 too: so that everything around them can be compared."""
    plain_kernels.use(monkeypatch)
    for fused in (fused_step.FusedStep, fused_prompt.FusedPrompt):
        monkeypatch.setattr(fused, "supports", lambda *arguments: False)
    device = mx.default_device()
    mx.set_default_device(mx.cpu)  # GPUs shorten float32 products
    yield
    mx.set_default_device(device)


PASSES = {
    "question": (lambda dtype: filled_cache(90, dtype), [(1, 30), (1, 1), (1, 1)]),
    "long question": (lambda dtype: filled_cache(90, dtype), [(1, 100), (1, 5)]),
    "first prompt": (lambda dtype: empty(), [(1, 300), (1, 20), (1, 1)]),
    "rows": (lambda dtype: filled_cache(255, dtype, 3), 3 * [(3, 1)]),
    "batch": (lambda dtype: batch_cache(254, [0, 7, 100], dtype), [(3, 1), (3, 1), (3, 4), (3, 1)]),
    "beyond the window": (lambda dtype: filled_cache(1100, dtype), [(1, 30), (1, 1)]),
}


@pytest.mark.parametrize("intermediate_size", [640, 576])
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("name", PASSES)
def test_around_the_kernels_everything_is_as_in_the_modules(
    name, bits, intermediate_size, kernels_in_mlx, monkeypatch
):
    make_cache, shapes = PASSES[name]
    model = make_decoder(mx.float32, bits, intermediate_size=intermediate_size)
    ours, modules = make_cache(mx.float32), make_cache(mx.float32)
    actual = run(model, ours, shapes)
    assert uses_kernels(model)
    monkeypatch.setattr(device, "enabled", lambda: False)
    plain = unpacked(model)
    expected = run(plain, modules, shapes)
    assert relative_error(actual, expected) < 1e-5
    for layer, other in zip(ours, modules):
        for name in ("keys", "values"):
            assert relative_error(filled(layer, name), filled(other, name)) < 1e-5


def test_weights_may_change_between_passes(kernels_in_mlx):
    model = make_decoder(mx.float32)
    before = run(model, filled_cache(9, mx.float32), [(1, 5)])
    layer = model.model.layers[1].mlp
    layer.up_proj.weight = 2 * layer.up_proj.weight
    after = run(model, filled_cache(9, mx.float32), [(1, 5)])
    assert relative_error(after, before) > 0.1


def test_logits_of_the_last_positions(kernels_in_mlx):
    model = make_decoder(mx.float32)
    every, last = (run(model, filled_cache(9, mx.float32), [(1, 6)], keep) for keep in (0, 2))
    assert mx.allclose(every[-2:], last, atol=1e-5).item()


def test_prompts_between_the_steps_of_a_batch_leave_its_graph(kernels_in_mlx, monkeypatch):
    compile = mock.Mock(wraps=mx.compile)
    monkeypatch.setattr(mx, "compile", compile)
    model, cache = make_decoder(mx.float32), filled_cache(9, mx.float32, 3)
    run(model, cache, [(3, 1)])
    run(model, filled_cache(9, mx.float32), [(1, 5)])
    assert compile.called
    compile.reset_mock()
    run(model, cache, [(3, 1)])
    run(model, filled_cache(9, mx.float32), [(1, 5)])
    assert not compile.called


@needs_gpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (8, 32), (4, 64), (4, 128)])
@pytest.mark.parametrize("rows", [(96, 32, 32), (64, 64), (1000,)])
def test_unpacked_weights_are_those_of_mlx(dtype, bits, group_size, rows):
    form, arrays, expected = decoder_layers.Format(bits, group_size), [], []
    for count in rows:
        packed = mx.quantize(mx.random.normal((count, 640)).astype(dtype), group_size, bits)
        arrays += packed
        floats = [array.astype(mx.float32) for array in packed[1:]]
        expected.append(mx.dequantize(packed[0], *floats, group_size, bits).astype(dtype))
    (actual,) = layerwise_kernels.unpack_weights(dtype, form, rows, 640)(*arrays)
    assert relative_error(actual, mx.concatenate(expected).astype(mx.float32)) < 2**-10


@needs_gpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("bits", "group_size"), [(16, 64), (8, 64), (8, 32), (4, 64), (4, 128)])
# A tile of each size; beyond what our products compute.
@pytest.mark.parametrize("shape", [(2, 5), (2, 15), (2, 30), (1, 100), (1, 200)])
def test_prompts_after_others_are_as_close_to_float32_as_the_modules(
    dtype, bits, group_size, shape, monkeypatch
):
    def cache(dtype):
        return filled_cache(90, dtype, shape[0])

    config = {"intermediate_size": 640}
    check(dtype, bits, group_size, cache, [shape, (shape[0], 1)], monkeypatch, **config)


@needs_gpu
@pytest.mark.parametrize("batch", [2, 8, 9, 20, 33])
@pytest.mark.parametrize(("bits", "group_size"), [(16, 64), (8, 64), (4, 64)])
def test_steps_of_a_batch_are_as_close_to_float32_as_the_modules(
    bits, group_size, batch, monkeypatch
):
    padding = [7 * row % 50 for row in range(batch)]

    def cache(dtype):
        return batch_cache(255, padding, dtype)

    config = {"intermediate_size": 640}
    check(mx.bfloat16, bits, group_size, cache, 3 * [(batch, 1)], monkeypatch, **config)


@needs_gpu
@pytest.mark.parametrize("shape", [(2, 20), (3, 1)])
def test_the_window_hides_older_keys(shape, monkeypatch):
    def cache(dtype):
        return filled_cache(300, dtype, shape[0])

    check(mx.bfloat16, 16, 64, cache, [shape], monkeypatch, sliding_window=100)


@needs_gpu
def test_a_first_prompt_and_widths_that_our_products_do_not_take(monkeypatch):
    def cache(dtype):
        return empty()

    check(mx.bfloat16, 16, 64, cache, [(1, 20), (1, 300)], monkeypatch, intermediate_size=576)


@needs_gpu
def test_padded_prompts_of_a_batch_are_the_prompts_alone():
    model = make_decoder(intermediate_size=640)
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 13]]
    padded = mx.array([prompts[0], [0] * 5 + prompts[1]])
    cache = empty(lambda: BatchKVCache([0, 5]))
    together = model(padded, cache=cache).logits[:, -1]
    following = model(mx.array([[3], [4]]), cache=cache).logits[:, -1]
    for row, (prompt, token) in enumerate(zip(prompts, (3, 4))):
        cache_of_row = empty()
        alone = model(mx.array([prompt]), cache=cache_of_row).logits[0, -1]
        assert relative_error(together[row], alone.astype(mx.float32)) < 2**-6
        alone = model(mx.array([[token]]), cache=cache_of_row).logits[0, -1]
        assert relative_error(following[row], alone.astype(mx.float32)) < 2**-6
