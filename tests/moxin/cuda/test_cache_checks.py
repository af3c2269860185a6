"""Which caches the kernels can append to."""

import mlx.core as mx
import pytest
from cuda_support import empty, filled_cache, make_decoder
from mlx_vlm.models.cache import BatchKVCache, KVCache
from mlx_vlm.models.moxin.cuda import cache_checks, decoder_sizes


def only_the_second(array_name):
    def change(cache):
        setattr(cache[1], array_name, getattr(cache[1], array_name).astype(mx.float32))

    return change


def shorter(cache):
    cache[1].offset -= 1


def smaller(cache):
    cache[1].keys = cache[1].keys[..., :128, :]


CACHE_CHANGES = [only_the_second("keys"), only_the_second("values"), shorter, smaller]


@pytest.mark.parametrize("change", CACHE_CHANGES, ids=["keys", "values", "offset", "capacity"])
@pytest.mark.parametrize("length", [1, 5])
def test_caches_that_are_not_alike_are_left_to_the_modules(change, length, kernels_everywhere):
    model, cache = make_decoder(), filled_cache(10)
    sizes = decoder_sizes.read_sizes(model.model)
    inputs = mx.zeros((1, length), mx.int32)
    assert cache_checks.caches_fit(cache, (KVCache,), inputs, None, sizes)
    change(cache)
    arrays = [array for layer in cache for array in (layer.keys, layer.values)]
    is_left = not cache_checks.caches_fit(cache, (KVCache,), inputs, None, sizes)
    # The arrays of a step are checked when its graph is traced.
    assert is_left or (length == 1 and not cache_checks.are_alike(arrays, 1, sizes))


def test_caches_of_another_decoder_are_left_to_the_modules(kernels_everywhere):
    model = make_decoder(num_attention_heads=4, num_key_value_heads=4)
    sizes = decoder_sizes.read_sizes(model.model)
    inputs = mx.zeros((1, 1), mx.int32)
    assert not cache_checks.caches_fit(filled_cache(10), (KVCache,), inputs, None, sizes)
    assert not cache_checks.caches_fit([], (KVCache,), inputs, None, sizes)
    batch = empty(lambda: BatchKVCache([0]))
    assert not cache_checks.caches_fit(batch, (KVCache,), inputs, None, sizes)
