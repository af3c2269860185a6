"""Which decoders the CUDA kernels take, and when that is asked."""

import mlx.core as mx
import plain_row_kernels
import pytest
from cuda_support import filled_cache, make_decoder
from mlx_lm.tuner.lora import LoRALinear
from mlx_vlm.models.moxin.cuda import decoder_weights, kv_cache, rows, token_step


def test_other_devices_use_the_modules():
    assert mx.cuda.is_available() or decoder_weights.read_blocks(make_decoder()) is None


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("bits", "group_size"), [(16, 64), (8, 32), (8, 64), (4, 64), (4, 128)])
def test_supported_formats(dtype, bits, group_size, kernels_everywhere):
    assert decoder_weights.read_blocks(make_decoder(dtype, bits, group_size, intermediate_size=640))


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
    assert decoder_weights.read_blocks(model()) is None


def test_a_decoder_that_is_changed_is_asked_about_again_with_the_next_prompt(
    kernels_everywhere, monkeypatch
):
    steps = []
    monkeypatch.setattr(
        token_step.DecodeStep, "__call__", lambda self, inputs, cache: steps.append(inputs.shape)
    )
    monkeypatch.setattr(rows.RowsPass, "takes", lambda *arguments: False)
    model, cache = make_decoder(), filled_cache(10)
    model(mx.array([[5]]), cache=cache)
    adapter(model)
    model(mx.array([[5, 6]]), cache=cache)
    model(mx.array([[5]]), cache=cache)
    assert steps == [(1, 1)]


@pytest.mark.parametrize("cache", [lambda: filled_cache(10), lambda: filled_cache(10, batch=2)])
def test_a_change_within_an_answer_is_one_clear_error(cache, kernels_everywhere, monkeypatch):
    monkeypatch.setattr(kv_cache, "stack", plain_row_kernels.stack)
    model, cache = make_decoder(), cache()
    model._has_kernels = True
    mixed(model)
    with pytest.raises(ValueError, match="start again with a prompt"):
        model(mx.zeros((len(cache[0].keys), 1), mx.int32), cache=cache)
