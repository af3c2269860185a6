"""Long prompts in pieces give what they give in one pass."""

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
    uses_kernels,
)
from mlx_vlm.models.moxin.cuda import device, layerwise, prompt_pieces

LENGTH = 43


@pytest.fixture
def decoder(on_cpu, kernels_everywhere, monkeypatch):
    """A decoder whose kernels are replaced by MLX, in pieces of up to 10 tokens."""
    plain_kernels.use(monkeypatch)
    monkeypatch.setattr(prompt_pieces, "MAX_TOKENS", 10)
    return make_decoder(mx.float32, sliding_window=None)


@pytest.fixture
def lengths(monkeypatch):
    """Those of the pieces."""
    found, run = [], layerwise.Layerwise._run

    def record(self, inputs, *arguments, **options):
        found.append(inputs.shape[1])
        return run(self, inputs, *arguments, **options)

    monkeypatch.setattr(layerwise.Layerwise, "_run", record)
    return found


def prompt(batch: int) -> mx.array:
    mx.random.seed(0)
    return mx.random.randint(0, CONFIG["vocab_size"], (batch, LENGTH))


@pytest.mark.parametrize("kept", [0, 1, 12])
@pytest.mark.parametrize(
    ("batch", "make_cache"),
    [
        (1, empty),
        (1, lambda: filled_cache(7, mx.float32)),
        (3, lambda: batch_cache(7, [0, 3, 1], mx.float32)),
    ],
    ids=["empty", "further", "batch"],
)
def test_logits_and_caches_equal_those_of_the_modules(
    batch, make_cache, kept, decoder, lengths, monkeypatch
):
    ids, ours, modules = prompt(batch), make_cache(), make_cache()
    actual = decoder(ids, cache=ours, logits_to_keep=kept).logits
    assert uses_kernels(decoder)
    assert lengths == [8, 9, 8, 9, 9]
    monkeypatch.setattr(device, "enabled", lambda: False)
    expected = decoder(ids, cache=modules, logits_to_keep=kept).logits
    assert actual.shape == expected.shape == (batch, kept or LENGTH, CONFIG["vocab_size"])
    assert relative_error(actual, expected) < 1e-5
    for layer, other in zip(ours, modules):
        assert layer.size() == other.size()
        for name in ("keys", "values"):
            assert relative_error(filled(layer, name), filled(other, name)) < 1e-5


def test_embeddings_are_divided_as_ids_are(decoder, lengths):
    ids = prompt(1)
    from_ids = decoder(ids, cache=empty()).logits
    embeddings = decoder.model.embed_tokens(ids)
    assert mx.allclose(decoder(ids, embeddings, cache=empty()).logits, from_ids, atol=1e-5).item()
    assert len(lengths) == 10


@pytest.mark.parametrize("before", [0, 7])
def test_a_piece_that_fails_leaves_the_caches_as_they_were(decoder, before, monkeypatch):
    calls, run = [], layerwise.Layerwise._run

    def fail_at_the_third(self, *arguments, **options):
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("no such kernel")
        return run(self, *arguments, **options)

    monkeypatch.setattr(layerwise.Layerwise, "_run", fail_at_the_third)
    monkeypatch.setattr(device, "disable_after", lambda error: None)
    ids = prompt(1)
    ours, modules = (filled_cache(before, mx.float32) if before else empty() for _ in range(2))
    actual = decoder(ids, cache=ours).logits  # by the modules, after two pieces
    assert len(calls) == 3
    monkeypatch.setattr(device, "enabled", lambda: False)
    expected = decoder(ids, cache=modules).logits
    assert ours[0].size() == modules[0].size() == before + LENGTH
    assert relative_error(actual, expected) < 1e-5


@needs_gpu
@pytest.mark.parametrize("bits", [16, 4])
def test_pieces_on_a_gpu_are_as_close_to_float32_as_the_modules(bits, monkeypatch):
    shapes = [(1, 2 * prompt_pieces.MAX_TOKENS + 76), (1, 1)]
    options = {"sliding_window": None}
    check(mx.bfloat16, bits, 64, lambda dtype: empty(), shapes, monkeypatch, **options)
