"""Which decoders the CUDA kernels support, and when that is checked."""

import mlx.core as mx
import plain_kernels
import pytest
from cuda_support import filled, filled_cache, make_decoder, recording, uses_kernels
from mlx_lm.tuner.lora import LoRALinear
from mlx_vlm.models.moxin.cuda import (
    decoder_layers,
    device,
    fused_step,
    kernel,
    kv_cache,
    layerwise,
)


def test_other_devices_use_the_modules():
    model = make_decoder()
    model(mx.array([[5, 6]]), cache=filled_cache(10))
    assert mx.cuda.is_available() or not uses_kernels(model)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("bits", "group_size"), [(16, 64), (8, 32), (8, 64), (4, 64), (4, 128)])
def test_every_format_is_supported(dtype, bits, group_size, kernels_everywhere):
    model = make_decoder(dtype, bits, group_size, intermediate_size=640)
    assert decoder_layers.supports(model.model)


def adapter(model):
    layer = model.model.layers[1].self_attn
    layer.q_proj = LoRALinear.from_base(layer.q_proj)
    return model


def mixed(model):
    layer = model.model.layers[1].mlp
    layer.up_proj = layer.up_proj.to_quantized(64, 8)
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: make_decoder(mx.float32),
        lambda: make_decoder(bits=6),
        lambda: make_decoder(bits=4, group_size=32, mode="mxfp4"),
        lambda: make_decoder(head_dim=32),
        lambda: make_decoder(rope_traditional=True),
        lambda: adapter(make_decoder()),
        lambda: mixed(make_decoder()),
        lambda: make_decoder().train(),
    ],
    ids=["float32", "6bit", "mxfp4", "narrow heads", "rope", "adapter", "mixed", "training"],
)
def test_what_the_kernels_do_not_compute_goes_through_the_modules(model, kernels_everywhere):
    assert not decoder_layers.supports(model().model)


def test_a_decoder_that_is_changed_is_checked_again_at_the_next_prompt(
    kernels_everywhere, monkeypatch
):
    steps = []
    monkeypatch.setattr(
        fused_step.FusedStep, "__call__", lambda self, inputs, *rest: steps.append(inputs.shape)
    )
    monkeypatch.setattr(layerwise.Layerwise, "supports", lambda *arguments: False)
    model, cache = make_decoder(), filled_cache(10)
    model(mx.array([[5]]), cache=cache)
    adapter(model)
    model(mx.array([[5, 6]]), cache=cache)
    model(mx.array([[5]]), cache=cache)
    assert steps == [(1, 1)]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_change_within_an_answer_leaves_the_next_tokens_to_the_modules(
    batch, kernels_everywhere, monkeypatch
):
    monkeypatch.setattr(kv_cache, "gather_caches", plain_kernels.gather_caches)
    monkeypatch.setattr(kernel, "build", recording([]))
    model, token = make_decoder(), mx.full((batch, 1), 5)
    model(token, cache=filled_cache(10, batch=batch))
    assert uses_kernels(model)
    mixed(model)
    cache, modules = filled_cache(10, batch=batch), filled_cache(10, batch=batch)
    actual = model(token, cache=cache).logits
    assert not uses_kernels(model)
    monkeypatch.setattr(device, "enabled", lambda: False)
    assert mx.array_equal(actual, model(token, cache=modules).logits).item()
    assert all(
        mx.array_equal(filled(layer, name), filled(other, name)).item()
        for layer, other in zip(cache, modules)
        for name in ("keys", "values")
    )
