"""Each property that the kernels would compute differently is left to the modules."""

import mlx.core as mx
import mlx.nn as nn
import plain_kernels
import pytest
from cuda_support import empty, filled_cache, make_decoder
from mlx_vlm.models.moxin.cuda import (
    decoder_layers,
    decoder_sizes,
    device,
    kv_cache,
    layerwise,
    tower_layers,
    towers,
)
from test_towers import DINO, SIGLIP, make_model


def last(model):
    return model.model.layers[1]


def attention(model):
    return last(model).self_attn


class OtherLinear(nn.Linear):
    """Computes something else."""


class OtherNorm(nn.RMSNorm):
    """Computes something else."""


def with_bias(linear):
    linear.bias = mx.zeros(linear.weight.shape[:1], linear.weight.dtype)


def set_dtype(module, name, dtype):
    module[name] = module[name].astype(dtype)


DECODER_CHANGES = {
    "RoPE scale": lambda m: setattr(attention(m).rope, "scale", 0.5),
    "RoPE base": lambda m: setattr(attention(m).rope, "base", 500_000.0),
    "RoPE traditional": lambda m: setattr(attention(m).rope, "traditional", True),
    "RoPE dims": lambda m: setattr(attention(m).rope, "dims", 32),
    "RoPE class": lambda m: setattr(attention(m), "rope", nn.Identity()),
    "scores": lambda m: setattr(attention(m), "scale", 1.0),
    "heads": lambda m: setattr(attention(m), "n_heads", 4),
    "key heads": lambda m: setattr(attention(m), "n_kv_heads", 4),
    "norm dtype": lambda m: set_dtype(last(m).input_layernorm, "weight", mx.float32),
    "second norm dtype": lambda m: set_dtype(
        last(m).post_attention_layernorm, "weight", mx.float16
    ),
    "norm eps": lambda m: setattr(last(m).input_layernorm, "eps", 1e-3),
    "norm class": lambda m: setattr(last(m), "input_layernorm", OtherNorm(256)),
    "gate dtype": lambda m: set_dtype(last(m).mlp.gate_proj, "weight", mx.float16),
    "down dtype": lambda m: set_dtype(last(m).mlp.down_proj, "weight", mx.float32),
    "rows": lambda m: setattr(last(m).mlp.up_proj, "weight", mx.zeros((640, 256), mx.bfloat16)),
    "columns": lambda m: setattr(attention(m).o_proj, "weight", mx.zeros((256, 256), mx.bfloat16)),
    "bias": lambda m: with_bias(attention(m).q_proj),
    "class of a matrix": lambda m: setattr(last(m).mlp, "up_proj", OtherLinear(256, 576, False)),
    "class of the MLP": lambda m: setattr(last(m), "mlp", nn.Identity()),
    "embeddings' dtype": lambda m: set_dtype(m.model.embed_tokens, "weight", mx.float32),
    "training": lambda m: m.train(),
}


@pytest.mark.parametrize("change", DECODER_CHANGES.values(), ids=DECODER_CHANGES.keys())
def test_decoders_that_differ_in_one_thing_are_not_supported(change, kernels_everywhere):
    model = make_decoder()
    assert decoder_layers.supports(model.model)
    change(model)
    assert not decoder_layers.supports(model.model)


QUANTISED_CHANGES = {
    "scales' dtype": lambda m: set_dtype(last(m).mlp.gate_proj, "scales", mx.float32),
    "biases' dtype": lambda m: set_dtype(last(m).mlp.gate_proj, "biases", mx.float16),
    "bias": lambda m: with_bias(last(m).mlp.down_proj),
    "mode": lambda m: setattr(last(m).mlp.down_proj, "mode", "mxfp8"),
    "group size": lambda m: setattr(last(m).mlp.down_proj, "group_size", 16),
    "mixed": lambda m: setattr(last(m).mlp, "up_proj", last(m).mlp.up_proj.__class__(256, 640)),
}


@pytest.mark.parametrize("change", QUANTISED_CHANGES.values(), ids=QUANTISED_CHANGES.keys())
def test_quantised_decoders_that_differ_in_one_thing_are_not_supported(change, kernels_everywhere):
    model = make_decoder(bits=8, intermediate_size=640)
    assert decoder_layers.supports(model.model)
    change(model)
    assert not decoder_layers.supports(model.model)


def test_a_scaled_rope_is_not_supported(kernels_everywhere):
    scaling = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    assert not decoder_layers.supports(make_decoder(**scaling).model)


@pytest.mark.parametrize("kilobytes", [100, 64])
def test_heads_that_need_too_much_shared_memory_are_not_supported(
    kilobytes, kernels_everywhere, monkeypatch
):
    monkeypatch.setattr(device, "attribute", lambda number: kilobytes * 1024)
    model = make_decoder(head_dim=256)
    sizes = decoder_sizes.read_sizes(model.model)
    run = layerwise.Layerwise(model.model, model.lm_head)
    assert not run.supports(mx.zeros((1, 100), mx.int32), None, empty(), sizes)


def test_a_step_that_needs_too_much_shared_memory_is_left_to_the_modules(
    kernels_everywhere, monkeypatch
):
    monkeypatch.setattr(device, "attribute", lambda number: 8 * 1024)
    monkeypatch.setattr(kv_cache, "gather_caches", plain_kernels.gather_caches)
    model, cache = make_decoder(), filled_cache(10)
    modules = filled_cache(10)
    actual = model(mx.array([[5]]), cache=cache).logits
    monkeypatch.setattr(device, "enabled", lambda: False)
    assert mx.array_equal(actual, model(mx.array([[5]]), cache=modules).logits).item()


def first_layer(model):
    return model.siglip.blocks[0]


TOWER_CHANGES = {
    "norm dtype": lambda m: set_dtype(first_layer(m).norm1, "weight", mx.float32),
    "norm bias dtype": lambda m: set_dtype(first_layer(m).norm2, "bias", mx.float16),
    "norm eps": lambda m: setattr(first_layer(m).norm2, "eps", 1e-5),
    "LayerScale dtype": lambda m: set_dtype(m.dino.blocks[1].ls1, "gamma", mx.float32),
    "no LayerScale": lambda m: setattr(m.dino.blocks[1], "ls2", nn.Identity()),
    "bias dtype": lambda m: set_dtype(first_layer(m).attn.qkv, "bias", mx.float32),
    "weight dtype": lambda m: set_dtype(first_layer(m).mlp.fc2, "weight", mx.float16),
    "no bias": lambda m: first_layer(m).mlp.fc1.pop("bias"),
    "scores": lambda m: setattr(first_layer(m).attn, "scale", 1.0),
    "heads": lambda m: setattr(m.dino.blocks[1].attn, "num_heads", 1),
    "activation": lambda m: setattr(first_layer(m).mlp, "activation", "quick_gelu"),
    "class": lambda m: setattr(first_layer(m).mlp, "fc1", OtherLinear(144, 2152)),
    "training": lambda m: m.train(),
}


@pytest.mark.parametrize("change", TOWER_CHANGES.values(), ids=TOWER_CHANGES.keys())
def test_towers_that_differ_in_one_thing_are_not_supported(change, kernels_everywhere):
    model = make_model()
    assert tower_layers.supports(tower_layers.make_pairs(model.towers))
    change(model)
    assert not tower_layers.supports(tower_layers.make_pairs(model.towers))


@pytest.mark.parametrize(
    ("dino", "siglip", "supported"),
    [
        (DINO, SIGLIP | {"num_attention_heads": 12}, False),  # heads of 12
        (DINO | {"hidden_size": 100}, SIGLIP, False),
        (DINO | {"num_register_tokens": 0}, SIGLIP, True),
        (DINO, SIGLIP | {"layer_norm_eps": 1e-5}, False),
    ],
    ids=["head width", "width", "tokens", "eps"],
)
def test_widths_and_eps_decide_which_towers_are_supported(
    dino, siglip, supported, kernels_everywhere
):
    model = make_model(dino=dino, siglip=siglip)
    assert tower_layers.supports(tower_layers.make_pairs(model.towers)) is supported


def test_a_single_tower_is_left_to_the_modules(kernels_everywhere):
    model = make_model()
    assert towers.blocks(model, [model.dino], [mx.zeros((1, 105, 128), mx.bfloat16)]) is None
