"""Caches that kernels append to: when that happens in place, and that nothing else changes."""

import copy

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import CONFIG, batch_cache, filled, filled_cache, make_decoder, needs_gpu
from mlx_vlm.models.cache import BatchKVCache, KVCache
from mlx_vlm.models.moxin.cuda import kv_cache

LAYERS, HEADS = CONFIG["num_hidden_layers"], CONFIG["num_key_value_heads"]


@pytest.fixture
def plain_gather(monkeypatch):
    monkeypatch.setattr(kv_cache, "gather_caches", plain_kernels.gather_caches)


def tokens(count, batch=1, seed=0):
    """Keys or values of ``count`` tokens, of each layer."""
    mx.random.seed(seed)
    shape = (batch, HEADS, count, CONFIG["head_dim"])
    return [mx.random.normal(shape).astype(mx.bfloat16) for _ in range(LAYERS)]


def pairs(keys, values):
    """Keys and values of each layer in turn."""
    return [array for pair in zip(keys, values) for array in pair]


def append(cache):
    """Append like a decoding step, without running its kernel."""
    arrays = kv_cache.reserve(cache)
    kv_cache.append(cache, arrays, 1)
    return arrays


def append_first(cache, keys, values):
    """Append like the first prompt of an empty ``cache``, whose kernels leave room after it."""
    count = keys[0].shape[2]
    width = [(0, 0), (0, 0), (0, kv_cache.room(cache, count) - count), (0, 0)]
    arrays = [mx.pad(x, width) for x in pairs(keys, values)]
    kv_cache.append(cache, arrays, count)
    return arrays


def are_same(arrays, others):
    return all(array is other for array, other in zip(arrays, others, strict=True))


@pytest.mark.parametrize(("length", "count"), [(0, 5), (10, 3), (250, 6), (250, 7), (256, 300)])
@pytest.mark.parametrize("batch", [1, 2])
def test_new_tokens_follow_the_cached_ones(length, count, batch, plain_gather):
    def fresh():
        return filled_cache(length, batch=batch) if length else [KVCache() for _ in range(LAYERS)]

    ours, expected = fresh(), fresh()
    keys, values = tokens(count, batch), tokens(count, batch, seed=1)
    if length:
        assert kv_cache.room(ours, count) == 0
        kv_cache.extend(ours, pairs(keys, values))
    else:
        append_first(ours, keys, values)
    for layer, other, key, value in zip(ours, expected, keys, values):
        other.update_and_fetch(key, value)
        assert layer.offset == length + count
        assert layer.keys.shape == layer.values.shape
        assert layer.keys.shape[2] % KVCache.step == 0
        for name in ("keys", "values"):
            assert mx.array_equal(filled(layer, name), filled(other, name))


def test_a_token_is_appended_to_the_arrays_of_the_token_before(plain_gather):
    cache = filled_cache(10)
    first = append(cache)
    assert are_same(append(cache), first)
    assert [layer.offset for layer in cache] == LAYERS * [12]


def test_a_prompts_arrays_are_appended_to(plain_gather):
    cache = [KVCache() for _ in range(LAYERS)]
    arrays = append_first(cache, tokens(5), tokens(5))
    assert are_same(kv_cache.reserve(cache), arrays)
    assert are_same(kv_cache.reserve(cache, 251), arrays)
    assert not are_same(kv_cache.reserve(cache, 252), arrays)


@pytest.mark.parametrize(("count", "room"), [(1, 256), (256, 256), (257, 512)])
def test_empty_caches_get_room_in_steps(count, room):
    assert kv_cache.room([KVCache()], count) == room
    assert kv_cache.room([BatchKVCache([3])], count) == room


def trim(cache):
    for layer in cache:
        layer.trim(1)
    return cache


def update(cache):
    make_decoder()(mx.array([[5]]), cache=cache, capture_layer_ids=[0])
    return cache


def update_last(cache):
    return update(trim(cache))


def replace_one(cache):
    cache[1].keys = 1 * cache[1].keys
    return cache


@pytest.mark.parametrize("change", [trim, update, copy.deepcopy, replace_one])
def test_caches_that_may_share_memory_get_new_arrays(change, plain_gather):
    cache = filled_cache(10)
    first = append(cache)
    changed = change(cache)
    length = changed[0].offset
    held = [mx.array(filled(layer, "keys")) for layer in changed]
    second = append(changed)
    assert not any(a is b for a in second for b in first)
    assert [layer.offset for layer in changed] == LAYERS * [length + 1]
    for layer, keys in zip(changed, held):
        assert mx.array_equal(layer.keys[..., :length, :], keys)


def update_each(cache):
    for layer in trim(cache):
        layer.update_and_fetch(*(mx.full((1, HEADS, 1, 64), 7, mx.bfloat16) for _ in range(2)))
    return cache


def write_into(cache):
    for layer in cache:
        layer.keys[..., 3, :] = 5
    return cache


@pytest.mark.parametrize("change", [update_last, update_each, write_into])
def test_a_kernel_reads_values_that_others_wrote_into_the_cache(change, plain_gather):
    cache = filled_cache(10)
    append(cache)
    kept = [layer.keys[..., :11, :] for layer in cache]
    before = [mx.array(keys) for keys in kept]
    change(cache)
    expected = [mx.array(filled(layer, name)) for layer in cache for name in ("keys", "values")]
    arrays = append(cache)
    assert all(mx.array_equal(a[..., :11, :], b).item() for a, b in zip(arrays, expected))
    assert all(mx.array_equal(a, b).item() for a, b in zip(kept, before))


BATCHES = {
    "one": lambda length: filled_cache(length),
    "rows": lambda length: filled_cache(length, batch=3),
    "batch": lambda length: batch_cache(length, [0, 7, 4]),
    "batch of one": lambda length: batch_cache(length, [0]),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_full_array_grows(name, plain_gather):
    cache = BATCHES[name](255)
    assert append(cache)[0].shape[2] == 256
    assert append(cache)[0].shape[2] == 512


@pytest.mark.parametrize("name", BATCHES)
def test_tokens_of_a_batch_are_appended_to_the_arrays_of_the_token_before(name, plain_gather):
    cache, expected = BATCHES[name](10), BATCHES[name](10)
    first = append(cache)
    assert are_same(append(cache), first)
    for layer, other in zip(cache, expected):
        batch = other.keys.shape[0]
        other.update_and_fetch(*(mx.zeros((batch, HEADS, 2, 64), mx.bfloat16) for _ in range(2)))
        assert layer.size() == other.size() == 12
        assert mx.array_equal(mx.array(layer.offset), mx.array(other.offset))
        for kind in ("keys", "values"):
            assert mx.array_equal(
                getattr(layer, kind)[..., :10, :], getattr(other, kind)[..., :10, :]
            )


def test_layers_of_a_batch_change_their_offsets_one_by_one():
    cache = batch_cache(10, [0, 7, 4])
    append(cache)
    trim(cache)
    assert [layer.offset.tolist() for layer in cache] == LAYERS * [[10, 3, 6]]
    update_batch(cache)
    assert [layer.offset.tolist() for layer in cache] == LAYERS * [[11, 4, 7]]


def leave(cache):
    for layer in cache:
        layer.filter([0, 2])
    return cache


def leave_and_shift(cache):
    for layer in cache:
        layer.filter([1, 2])
    return cache


def join(cache):
    for layer, other in zip(cache, batch_cache(4, [0, 1])):
        layer.extend(other)
    return cache


def update_batch(cache):
    for layer in cache:
        layer.update_and_fetch(*(mx.full((3, HEADS, 1, 64), 7, mx.bfloat16) for _ in range(2)))
    return cache


def update_last_of_batch(cache):
    return update_batch(trim(cache))


@pytest.mark.parametrize(
    "change",
    [leave, leave_and_shift, join, trim, copy.deepcopy, update_batch, update_last_of_batch],
)
def test_a_batch_that_changes_between_tokens_keeps_its_contents(change):
    cache = batch_cache(10, [0, 7, 4])
    append(cache)
    kept = [layer.keys[..., :11, :] for layer in cache]
    before = [mx.array(keys) for keys in kept]
    changed = change(cache)
    length = changed[0].size()
    held = [mx.array(filled(layer, kind)) for layer in changed for kind in ("keys", "values")]
    arrays = append(changed)
    assert all(layer.size() == length + 1 for layer in changed)
    assert all(mx.array_equal(a[..., :length, :], b).item() for a, b in zip(arrays, held))
    assert all(mx.array_equal(a, b).item() for a, b in zip(kept, before))
    assert type(changed[0]) is BatchKVCache


@needs_gpu
@pytest.mark.parametrize("length", [10, 250])
@pytest.mark.parametrize("count", [0, 7])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_kernel_gives_what_mlx_gives(length, count, batch):
    shapes = (batch, HEADS, 256, 64), (batch, HEADS, count, 64) if count else None
    arrays = [
        mx.random.normal(shape).astype(mx.bfloat16)
        for shape in shapes
        if shape
        for _ in range(2 * LAYERS)
    ]
    arguments = mx.bfloat16, 2 * LAYERS, *shapes, 512
    position = mx.arange(length, length + 4)
    (actual,) = kv_cache.gather_caches(*arguments)(position, *arrays)
    (expected,) = plain_kernels.gather_caches(*arguments)(position, *arrays)
    assert mx.array_equal(actual, expected)


@needs_gpu
def test_copies_of_a_cache_are_independent():
    model = make_decoder()

    def answer(cache, ids):
        return mx.concatenate([model(mx.array([[id]]), cache=cache).logits for id in ids])

    cache = filled_cache(10)
    answer(cache, [1, 2])
    kept = copy.deepcopy(cache)
    slices = [layer.keys[..., :12, :] for layer in cache]
    before = [mx.array(keys) for keys in slices]
    mx.eval(before)
    expected = answer(copy.deepcopy(kept), [3, 4, 5])
    mx.eval(expected)
    answer(cache, [6, 7, 8])
    assert mx.array_equal(answer(kept, [3, 4, 5]), expected)
    for layer in cache:
        layer.trim(4)
    mx.eval(answer(cache, [9, 9]))
    assert all(mx.array_equal(a, b) for a, b in zip(slices, before))


@needs_gpu
def test_reading_the_cache_waits_for_the_kernel():
    model, cache, other = make_decoder(), filled_cache(10), filled_cache(10)
    model(mx.array([[5]]), cache=cache)
    keys = [filled(layer, "keys") for layer in cache]
    mx.eval(model(mx.array([[5]]), cache=other).logits)
    assert all(mx.array_equal(a, filled(b, "keys")) for a, b in zip(keys, other))
    assert all(mx.abs(a[..., 10, :]).sum().item() > 0 for a in keys)
