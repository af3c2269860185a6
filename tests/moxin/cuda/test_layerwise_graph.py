"""Results of prompts and batches that are computed layer by layer."""

from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import pytest
from cuda_support import (
    batch_cache,
    check,
    empty,
    filled,
    filled_cache,
    make_decoder,
    needs_gpu,
    needs_hopper,
    relative_error,
    run,
    unpacked,
    uses_kernels,
)
from mlx_vlm.models.cache import BatchKVCache
from mlx_vlm.models.moxin.cuda import (
    device,
    layerwise,
    layerwise_graph,
    prompt_matmul,
)

PASSES = {
    "question": (lambda dtype: filled_cache(90, dtype), [(1, 30), (1, 1), (1, 1)]),
    "long question": (lambda dtype: filled_cache(90, dtype), [(1, 100), (1, 5)]),
    "first prompt": (lambda dtype: empty(), [(1, 300), (1, 20), (1, 1)]),
    "rows": (lambda dtype: filled_cache(255, dtype, 3), 3 * [(3, 1)]),
    "batch of one": (
        lambda dtype: batch_cache(200, [7], dtype),
        [(1, 70), (1, 1), (1, 5), (1, 1)],
    ),
    "first prompt of a batch of one": (
        lambda dtype: empty(lambda: BatchKVCache([3])),
        [(1, 70), (1, 200), (1, 1)],
    ),
    "batch": (lambda dtype: batch_cache(254, [0, 7, 100], dtype), [(3, 1), (3, 1), (3, 4), (3, 1)]),
    "beyond the window": (lambda dtype: filled_cache(1100, dtype), [(1, 30), (1, 1)]),
}


def test_layers_are_submitted_while_the_next_ones_are_read(kernels_in_mlx, monkeypatch):
    events, read, submit = [], layerwise.read_layer, mx.async_eval

    model = make_decoder(mx.float32, num_hidden_layers=5)
    numbers = {id(block): number for number, block in enumerate(model.layers)}

    def read_layer(block, sizes):
        events.append(numbers[id(block)])
        return read(block, sizes)

    run(model, empty(layers=5), [(1, 100)])
    monkeypatch.setattr(layerwise, "read_layer", read_layer)
    monkeypatch.setattr(mx, "async_eval", lambda *x: events.append("submit") or submit(*x))
    run(model, empty(layers=5), [(1, 100)])
    # The ids; then a layer is submitted when the norm after it is known.
    assert events == ["submit", 0, 1, "submit", 2, 3, "submit", 4, "submit"]


def test_embeddings_are_submitted_before_the_layers_and_their_ids_are_not(
    kernels_in_mlx, monkeypatch
):
    model, submitted, submit = make_decoder(mx.float32), [], mx.async_eval
    embeds = mx.random.normal((1, 100, 256))
    monkeypatch.setattr(mx, "async_eval", lambda *x: submitted.extend(x) or submit(*x))
    ids = mx.full((1, 100), 3)
    model(ids, inputs_embeds=embeds, cache=empty(layers=len(model.layers)))
    assert submitted[0] is embeds
    assert not any(x is ids for x in submitted)


def test_a_layer_that_is_not_supported_leaves_the_prompt_to_the_modules(kernels_in_mlx):
    model, other = make_decoder(mx.float32), make_decoder(mx.float32)
    cache, modules = empty(), empty()
    model.layers[-1].mlp.down_proj = nn.Linear(576, 256)
    other.layers[-1].mlp.down_proj = model.layers[-1].mlp.down_proj
    actual = run(model, cache, [(1, 100), (1, 1)])
    assert not uses_kernels(model)
    other.engine_logits = lambda *arguments: None
    assert relative_error(actual, run(other, modules, [(1, 100), (1, 1)])) == 0


@pytest.mark.parametrize("intermediate_size", [640, pytest.param(576, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("name", PASSES)
def test_everything_around_the_kernels_equals_the_modules(
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


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("name", ["long question", "first prompt", "batch of one"])
def test_everything_around_the_products_of_hopper_equals_the_modules(
    name, bits, kernels_in_mlx, monkeypatch
):
    products, multiply = [], prompt_matmul.multiply
    monkeypatch.setattr(device, "has_warpgroups", lambda: True)
    monkeypatch.setattr(
        prompt_matmul, "multiply", lambda *given: products.append(given) or multiply(*given)
    )
    make_cache, shapes = PASSES[name]
    model = make_decoder(mx.float32, bits, intermediate_size=512)
    actual = run(model, make_cache(mx.float32), shapes)
    assert uses_kernels(model)
    assert len(products) == 2 * 4  # the graphs of the first layer and the last one
    monkeypatch.setattr(device, "enabled", lambda: False)
    assert relative_error(actual, run(unpacked(model), make_cache(mx.float32), shapes)) < 1e-5


def test_right_padding_of_a_prompt_becomes_left_padding(kernels_in_mlx, monkeypatch):
    model, results = make_decoder(mx.float32), []
    for is_enabled in (True, False):
        monkeypatch.setattr(device, "enabled", lambda is_enabled=is_enabled: is_enabled)
        cache = empty(lambda: BatchKVCache([0]))
        for layer in cache:
            layer.prepare(right_padding=[4])
        run(model, cache, [(1, 70)])
        assert uses_kernels(model)
        for layer in cache:
            layer.finalize()
        logits = run(model, cache, [(1, 1), (1, 1)])
        results.append((logits, [layer.offset.tolist() for layer in cache]))
    (actual, offsets), (expected, of_modules) = results
    assert offsets == of_modules == 2 * [[68]]
    assert relative_error(actual, expected) < 1e-5


def test_sequences_join_and_leave_a_batch_of_one(kernels_in_mlx, monkeypatch):
    model, results = make_decoder(mx.float32), []
    for is_enabled in (True, False):
        monkeypatch.setattr(device, "enabled", lambda is_enabled=is_enabled: is_enabled)
        cache, other = (empty(lambda: BatchKVCache([0])) for _ in range(2))
        logits = [run(model, cache, [(1, 70), (1, 1), (1, 1)])]
        logits.append(run(model, other, [(1, 90), (1, 1)]))
        for layer, another in zip(cache, other):
            layer.extend(another)
        logits.append(run(model, cache, [(2, 1), (2, 1)]))
        for layer in cache:
            layer.filter(mx.array([0]))
        logits.append(run(model, cache, [(1, 1), (1, 1)]))
        results.append((mx.concatenate(logits), [layer.offset.tolist() for layer in cache]))
    (actual, offsets), (expected, of_modules) = results
    assert offsets == of_modules == 2 * [[76]]
    assert relative_error(actual, expected) < 1e-5


def test_weights_may_change_between_passes(kernels_in_mlx):
    model = make_decoder(mx.float32)
    before = run(model, filled_cache(9, mx.float32), [(1, 5)])
    layer = model.model.layers[1].mlp
    layer.up_proj.weight = 2 * layer.up_proj.weight
    after = run(model, filled_cache(9, mx.float32), [(1, 5)])
    assert relative_error(after, before) > 0.1


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize(
    ("make_cache", "shape", "keep"),
    [
        (lambda: filled_cache(9, mx.float32), (1, 6), 2),
        (empty, (1, 100), 1),
        (lambda: filled_cache(9, mx.float32, 3), (3, 40), 1),
        (lambda: batch_cache(9, [0, 3], mx.float32), (2, 50), 40),
    ],
    ids=["question", "prompt", "prompts", "many of a batch"],
)
def test_logits_to_keep_are_the_last_ones(make_cache, shape, keep, bits, kernels_in_mlx):
    model, caches = make_decoder(mx.float32, bits), [make_cache(), make_cache()]
    every, last = (run(model, c, [shape], k) for c, k in zip(caches, (0, keep)))
    every = every.reshape(*shape, -1)[:, -keep:].flatten(0, 1)
    assert relative_error(last, every) < 1e-5
    for layer, other in zip(*caches):
        for name in ("keys", "values"):
            assert relative_error(filled(layer, name), filled(other, name)) < 1e-5


def test_the_last_layer_multiplies_no_other_tokens_than_those_kept(kernels_in_mlx, monkeypatch):
    multiply, rows = layerwise_graph._multiply, []

    def record(sizes, projection, x, *arguments, **options):
        rows.append(len(x))
        return multiply(sizes, projection, x, *arguments, **options)

    monkeypatch.setattr(layerwise_graph, "_multiply", record)
    model = make_decoder(mx.float32, num_hidden_layers=3)
    run(model, empty(layers=3), [(2, 50)], logits_to_keep=1)
    # The four products of the graph of all layers but the last, and those of the last.
    assert rows == [100, 100, 100, 100, 100, 2, 2, 2]


def test_prompts_between_the_steps_of_a_batch_keep_its_graph(kernels_in_mlx, monkeypatch):
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


def test_a_batch_of_another_size_needs_one_graph_for_all_layers_once(kernels_in_mlx, monkeypatch):
    compile = mock.Mock(wraps=mx.compile)
    monkeypatch.setattr(mx, "compile", compile)
    model = make_decoder(mx.float32)
    for batch in (9, 10, 9, 10):
        run(model, filled_cache(9, mx.float32, batch), [(batch, 1)])
    assert compile.call_count == 2


def test_a_batch_that_keeps_its_size_is_traced_as_a_whole(kernels_in_mlx, monkeypatch):
    monkeypatch.setattr(layerwise, "STEADY_STEPS", 2)
    compile = mock.Mock(wraps=mx.compile)
    monkeypatch.setattr(mx, "compile", compile)
    model = make_decoder(mx.float32)
    cache, expected = filled_cache(9, mx.float32, 3), filled_cache(9, mx.float32, 3)
    actual = run(model, cache, 6 * [(3, 1)])
    # Of a layer; of a step, which has another of a layer.
    assert compile.call_count == 3
    weight = model.model.layers[0].mlp.up_proj
    weight.weight = 2 * weight.weight
    changed = run(model, cache, [(3, 1)])
    monkeypatch.setattr(device, "enabled", lambda: False)
    weight.weight = 0.5 * weight.weight
    assert relative_error(actual, run(model, expected, 6 * [(3, 1)])) < 1e-5
    weight.weight = 2 * weight.weight
    assert relative_error(changed, run(model, expected, [(3, 1)])) < 1e-5


@needs_gpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("bits", "group_size"), [(16, 64), (8, 64), (8, 32), (4, 64), (4, 128)])
# One for each tile height, and one with more rows than our kernel computes.
@pytest.mark.parametrize("shape", [(2, 5), (2, 15), (2, 30), (1, 100), (1, 200)])
def test_prompts_after_others_are_as_close_to_float32_as_the_modules(
    dtype, bits, group_size, shape, monkeypatch
):
    def cache(dtype):
        return filled_cache(90, dtype, shape[0])

    config = {"intermediate_size": 640}
    check(dtype, bits, group_size, cache, [shape, (shape[0], 1)], monkeypatch, **config)


@needs_hopper
@pytest.mark.parametrize(
    ("dtype", "bits", "group_size"),
    [
        (mx.bfloat16, 8, 64),
        (mx.bfloat16, 4, 64),
        (mx.bfloat16, 16, 64),
        (mx.float16, 8, 32),
        (mx.float16, 4, 128),
        (mx.float16, 16, 64),
    ],
)
@pytest.mark.parametrize("shape", [(1, 90), (2, 100)])
def test_arranged_prompts_are_as_close_to_float32_as_the_modules(
    dtype, bits, group_size, shape, monkeypatch
):
    products, multiply = [], prompt_matmul.multiply
    monkeypatch.setattr(
        prompt_matmul, "multiply", lambda *given: products.append(given) or multiply(*given)
    )

    def cache(dtype):
        return filled_cache(90, dtype, shape[0])

    config = {"intermediate_size": 512}
    check(dtype, bits, group_size, cache, [shape, (shape[0], 1)], monkeypatch, **config)
    assert products


@needs_gpu
@pytest.mark.parametrize("batch", [2, 8, 9, 20, 33])
@pytest.mark.parametrize("intermediate_size", [640, 768])
@pytest.mark.parametrize(("bits", "group_size"), [(16, 64), (8, 64), (4, 64)])
def test_steps_of_a_batch_are_as_close_to_float32_as_the_modules(
    bits, group_size, batch, intermediate_size, monkeypatch
):
    monkeypatch.setattr(layerwise, "STEADY_STEPS", 1)  # the first step by layer, others as a whole
    padding = [7 * row % 50 for row in range(batch)]

    def cache(dtype):
        return batch_cache(255, padding, dtype)

    config = {"intermediate_size": intermediate_size}
    check(mx.bfloat16, bits, group_size, cache, 3 * [(batch, 1)], monkeypatch, **config)


@needs_gpu
@pytest.mark.parametrize("shape", [(2, 20), (3, 1)])
def test_the_window_hides_older_keys(shape, monkeypatch):
    def cache(dtype):
        return filled_cache(300, dtype, shape[0])

    check(mx.bfloat16, 16, 64, cache, [shape], monkeypatch, sliding_window=100)


@needs_gpu
def test_a_first_prompt_and_widths_without_a_kernel_are_as_close_to_float32(monkeypatch):
    def cache(dtype):
        return empty()

    check(mx.bfloat16, 16, 64, cache, [(1, 20), (1, 300)], monkeypatch, intermediate_size=576)


@needs_gpu
def test_padded_prompts_of_a_batch_give_what_each_gives_alone():
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
