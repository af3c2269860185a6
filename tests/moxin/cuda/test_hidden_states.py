"""Passes over whole sequences without a cache, as OpenVLA-OFT computes them."""

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import (
    CONFIG,
    assert_as_close,
    make_decoder,
    needs_gpu,
    relative_error,
    unpacked,
    uses_kernels,
)
from mlx_vlm.models.moxin.cuda import device, layerwise

from mlx_vlm_moxin.actions.parallel import decode

TOLERANCE = 1e-5


def embeddings(batch, length, dtype):
    mx.random.seed(3)
    return mx.random.normal((batch, length, CONFIG["hidden_size"])).astype(dtype)


def by_modules(model, x, is_causal):
    """What mlx-vlm's blocks compute."""
    mask = "causal" if is_causal else None
    for layer in model.layers:
        x = layer(x, mask, None)
    return model.model.norm(x)


@pytest.fixture
def plain(on_cpu, kernels_everywhere, monkeypatch):
    plain_kernels.use(monkeypatch)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("shape", [(1, 2), (1, 70), (2, 40)])
@pytest.mark.parametrize("bits", [16, pytest.param(8, marks=pytest.mark.slow)])
def test_hidden_states_are_those_of_the_modules(shape, is_causal, bits, plain):
    model, x = make_decoder(mx.float32, bits), embeddings(*shape, mx.float32)
    actual = model.engine_hidden_states(x, is_causal)
    assert relative_error(actual, by_modules(model, x, is_causal)) < TOLERANCE


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("shape", [(1, 70), (2, 40), (2, 70)])
@pytest.mark.parametrize("bits", [16, pytest.param(8, marks=pytest.mark.slow)])
def test_kept_tokens_are_a_part_of_the_hidden_states(shape, is_causal, bits, plain):
    model, x = make_decoder(mx.float32, bits), embeddings(*shape, mx.float32)
    for kept in (slice(3, 5), slice(2, 39), slice(-1, None)):
        actual = model.engine_hidden_states(x, is_causal, kept)
        expected = by_modules(model, x, is_causal)[:, kept]
        assert actual.shape == expected.shape
        assert relative_error(actual, expected) < TOLERANCE


def test_passes_of_both_kinds_may_follow_each_other(plain):
    model, x = make_decoder(mx.float32), embeddings(1, 70, mx.float32)
    for is_causal in (True, False, True):
        actual = model.engine_hidden_states(x, is_causal)
        assert relative_error(actual, by_modules(model, x, is_causal)) < TOLERANCE


@pytest.mark.parametrize(
    ("shape", "dtype", "config"),
    [
        ((1, 1), mx.float32, {}),
        ((1, 65), mx.float32, {"sliding_window": 64}),
        ((1, 8), mx.bfloat16, {}),
    ],
    ids=["one token", "beyond the window", "dtype"],
)
def test_the_modules_compute_what_the_kernels_do_not(shape, dtype, config, plain):
    model = make_decoder(mx.float32, **config)
    assert model.engine_hidden_states(embeddings(*shape, dtype), False) is None


def test_the_modules_compute_it_in_training(plain):
    model = make_decoder(mx.float32)
    model.train()
    assert model.engine_hidden_states(embeddings(1, 8, mx.float32), False) is None


def test_a_longer_sequence_is_left_to_the_modules(plain, monkeypatch):
    monkeypatch.setattr(layerwise, "MAX_WHOLE_TOKENS", 16)
    model = make_decoder(mx.float32)
    assert model.engine_hidden_states(embeddings(1, 16, mx.float32), False) is not None
    assert model.engine_hidden_states(embeddings(1, 17, mx.float32), False) is None


@pytest.mark.parametrize(
    ("lengths", "is_causal", "uses_engine"),
    [([9, 9], False, True), ([9, 9], True, True), ([9, 7], True, True), ([9, 7], False, False)],
)
def test_only_padding_that_would_be_seen_needs_the_modules(
    lengths, is_causal, uses_engine, on_cpu, monkeypatch
):
    model, x, calls = make_decoder(mx.float32), embeddings(2, 9, mx.float32), []
    monkeypatch.setattr(type(model), "engine_hidden_states", lambda *a: calls.append(a[2]))
    expected = [by_modules(model, x[i : i + 1, :n], is_causal) for i, n in enumerate(lengths)]
    actual = decode(model, x, lengths, is_causal)
    part = decode(model, x, lengths, is_causal, slice(2, 6))
    assert relative_error(part, actual[:, 2:6]) < TOLERANCE
    assert calls == 2 * [is_causal] * uses_engine
    for index, part in enumerate(expected):
        assert relative_error(actual[index, : part.shape[1]], part[0]) < TOLERANCE


def test_what_the_engine_computes_is_the_result(on_cpu, monkeypatch):
    model, x = make_decoder(mx.float32), embeddings(1, 9, mx.float32)
    computed = mx.zeros_like(x)
    monkeypatch.setattr(type(model), "engine_hidden_states", lambda *_: computed)
    assert decode(model, x, [9], False) is computed


@needs_gpu
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("shape", [(1, 40), (1, 609), (2, 100)])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_hidden_states_are_as_close_to_float32_as_the_modules(shape, is_causal, bits, monkeypatch):
    model, x = make_decoder(bits=bits), embeddings(*shape, mx.bfloat16)
    exact = by_modules(unpacked(model), x.astype(mx.float32), is_causal)
    actual = model.engine_hidden_states(x, is_causal)
    part = model.engine_hidden_states(x, is_causal, slice(9, 39))
    assert uses_kernels(model)
    monkeypatch.setattr(device, "enabled", lambda: False)
    plain = unpacked(model)
    plain.set_dtype(mx.bfloat16)
    allowed = by_modules(plain, x, is_causal)
    assert_as_close(actual, allowed, exact)
    assert_as_close(part, allowed[:, 9:39], exact[:, 9:39])
