"""The decoder: window, padding, caches, taps and head."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models.cache import BatchKVCache, KVCache, make_prompt_cache
from mlx_vlm.models.moxin.language import LanguageModel
from mlx_vlm.models.moxin.text_config import TextConfig

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
CLOSE = {"rtol": 0, "atol": 1e-5}


def decoder(**changes) -> LanguageModel:
    mx.random.seed(0)
    return LanguageModel(TextConfig.from_dict({**SMALL, **changes}))


def tokens(*shape: int) -> mx.array:
    return mx.random.randint(0, 64, shape, key=mx.random.key(1))


def test_a_token_sees_as_far_as_the_window_and_no_further():
    model = decoder(num_hidden_layers=1, sliding_window=4)
    ids = tokens(1, 10)
    last = model(ids).logits[0, -1]
    for distance in range(1, 10):
        changed = mx.array(ids)
        changed[0, -1 - distance] = (ids[0, -1 - distance] + 1) % 64
        differs = not mx.allclose(model(changed).logits[0, -1], last, atol=1e-6)
        assert differs == (distance < 4)


@pytest.mark.parametrize("window", [None, 4, 6, 100])
@pytest.mark.parametrize("steps", [[1] * 12, [7, 5], [3, 1, 6, 2]])
def test_the_window_is_the_same_with_and_without_a_cache(window, steps):
    model = decoder(sliding_window=window)
    ids = tokens(2, 12)
    cache, outputs, start = make_prompt_cache(model), [], 0
    for step in steps:
        outputs.append(model(ids[:, start : start + step], cache=cache).logits)
        start += step
    np.testing.assert_allclose(mx.concatenate(outputs, axis=1), model(ids).logits, **CLOSE)


@pytest.mark.parametrize("window", [None, 5])
def test_left_padding_changes_nothing_with_or_without_a_cache(window):
    model = decoder(sliding_window=window)
    rows, padding = [tokens(1, 9), tokens(1, 6)], [0, 3]
    batch = mx.concatenate([rows[0], mx.pad(rows[1], [(0, 0), (3, 0)])])
    mask = mx.array([[1] * 9, [0] * 3 + [1] * 6])
    cache = [BatchKVCache(padding) for _ in model.layers]
    for output in (model(batch, mask=mask), model(batch, cache=cache)):
        for row, alone in enumerate(rows):
            expected = model(alone).logits[0]
            np.testing.assert_allclose(output.logits[row, padding[row] :], expected, **CLOSE)


def test_without_its_mask_left_padding_would_change_the_output():
    model = decoder()
    ids = tokens(1, 6)
    padded = model(mx.pad(ids, [(0, 0), (3, 0)])).logits[:, 3:]
    assert not mx.allclose(padded, model(ids).logits, atol=1e-3)


def test_right_padding_changes_nothing_before_it():
    model = decoder()
    ids = tokens(1, 6)
    mask = mx.array([[1] * 6 + [0] * 2])
    padded = model(mx.pad(ids, [(0, 0), (0, 2)]), mask=mask).logits[:, :6]
    np.testing.assert_allclose(padded, model(ids).logits, **CLOSE)


def test_logits_to_keep_are_the_last_ones():
    model = decoder()
    ids = tokens(2, 7)
    full = model(ids).logits
    assert full.shape == (2, 7, 64)
    for keep in (1, 3):
        kept = model(ids, logits_to_keep=keep).logits
        np.testing.assert_allclose(kept, full[:, -keep:], **CLOSE)


def test_embeddings_replace_ids():
    model = decoder()
    ids = tokens(1, 5)
    embeddings = model.model.embed_tokens(ids)
    output = model(mx.zeros_like(ids), inputs_embeds=embeddings).logits
    assert mx.array_equal(output, model(ids).logits)


def test_captured_layers_are_the_residual_stream_after_each():
    model = decoder(num_hidden_layers=3)
    ids = tokens(1, 5)
    output = model(ids, capture_layer_ids=[0, 2])
    assert len(output.hidden_states) == 2
    last = model.lm_head(model.model.norm(output.hidden_states[1]))
    np.testing.assert_allclose(last, output.logits, **CLOSE)
    assert model(ids).hidden_states is None


def test_rejected_draft_tokens_leave_the_cache():
    model = decoder()
    ids = tokens(1, 8)
    cache = make_prompt_cache(model)
    model(ids[:, :5], cache=cache)
    model(mx.concatenate([ids[:, 5:6], mx.zeros((1, 3), mx.int32)], axis=1), cache=cache)
    model.rollback_speculative_cache(cache, None, 0, block_size=4)
    assert cache[0].offset == 6
    output = model(ids[:, 6:], cache=cache).logits
    np.testing.assert_allclose(output, model(ids).logits[:, 6:], **CLOSE)


def test_the_cache_is_left_to_mlx_vlm():
    model = decoder()
    assert all(isinstance(layer, KVCache) for layer in make_prompt_cache(model))
    assert make_prompt_cache(model, max_kv_size=8)[0].max_size == 8


def test_a_group_that_does_not_divide_the_key_value_heads_is_refused():
    class Group:
        @staticmethod
        def size():
            return 3

    with pytest.raises(ValueError, match="2 key-value heads, which cannot be divided over 3"):
        decoder().shard(Group())


def test_sizes_are_where_mlx_vlm_looks_for_them():
    model = decoder(head_dim=16)
    assert (model.head_dim, model.n_kv_heads, len(model.layers)) == (16, 2, 2)
    assert model.config.max_position_embeddings == 32768
    assert not hasattr(model.config, "image_token_index")
