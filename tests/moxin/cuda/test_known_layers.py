"""Layers like one that passed the check are not checked again; whatever changes is noticed."""

import gc
import weakref

import mlx.core as mx
import mlx.nn as nn
import pytest
from cuda_support import empty, make_decoder, relative_error, run, uses_kernels
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.lora import LoRALinear
from mlx_vlm.models.moxin.cuda import (
    decoder_layers,
    decoder_sizes,
    joined_weights,
    kernel,
    known_layers,
    kv_cache,
    layerwise_graph,
    projections,
)
from mlx_vlm.models.moxin.cuda.decoder_sizes import read_sizes
from mlx_vlm.models.moxin.cuda.errors import UnsupportedError
from mlx_vlm.models.moxin.cuda.layerwise_kernels import Tokens
from test_decoder_layers import adapter, mixed
from test_shards import SHARD_CHANGES, sharded
from test_supports import DECODER_CHANGES, QUANTISED_CHANGES, attention, last


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    """No layer is known; collects the sizes with which each layer is checked."""
    calls, check = [], decoder_layers._check

    def record(modules, sizes):
        calls.append(sizes)
        return check(modules, sizes)

    monkeypatch.setattr(known_layers, "_known", ())
    monkeypatch.setattr(decoder_layers, "_check", record)
    return calls


class Owner:
    """Something that a plug-in attaches to a module."""


def wide(bits=16, dtype=mx.bfloat16):
    return make_decoder(dtype, bits, intermediate_size=640)


def read(model):
    """What is read: forms and arrays, or the reason against it."""
    try:
        sizes = read_sizes(model.model)
        layers = decoder_layers.read_layers(model.model, sizes)
    except UnsupportedError as error:
        return str(error)
    return [(layer.form, list(map(id, layer.arrays))) for layer in layers]


MODELS = {"16": wide, "8": lambda: wide(8), "4": lambda: wide(4), "sharded": sharded}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_layers_that_are_alike_are_checked_once(make, checked):
    model = make()
    first = read(model)
    assert len(first) == 2
    assert len(checked) == 1
    assert read(model) == first
    assert len(checked) == 1


def test_each_format_is_checked_once(checked):
    model = wide(8)
    for layer in (model.layers[0], wide(8).layers[0]):
        layer.mlp.down_proj = wide(4).layers[0].mlp.down_proj
    first = read(model)
    assert first[0][0] is not first[1][0]
    assert len(checked) == 2
    assert read(model) == first
    assert len(checked) == 2


def quantise_again(model):
    for name, other in (("up_proj", wide(4)), ("gate_proj", wide(4))):
        setattr(last(model).mlp, name, last(other).mlp[name])


def fuse(model):
    layer = attention(adapter(model))
    layer.q_proj = layer.q_proj.fuse()


def unquantised(model):
    layer = last(model).mlp
    layer.down_proj = last(wide()).mlp.down_proj


CHANGES = {
    "head width": lambda m: setattr(attention(m), "head_dim", 32),
    "second norm eps": lambda m: setattr(last(m).post_attention_layernorm, "eps", 1e-3),
    "second norm class": lambda m: setattr(last(m), "post_attention_layernorm", nn.LayerNorm(256)),
    "layer class": lambda m: m.model.layers.__setitem__(1, nn.Identity()),
    "attention class": lambda m: setattr(last(m), "self_attn", nn.Identity()),
    "adapter": adapter,
    "adapter of the MLP": lambda m: setattr(
        last(m).mlp, "down_proj", LoRALinear.from_base(last(m).mlp.down_proj)
    ),
    "fused adapter": fuse,
    "one array": lambda m: setattr(attention(m).v_proj, "weight", 2 * attention(m).v_proj.weight),
    "norm": lambda m: setattr(
        last(m).input_layernorm, "weight", 2 * last(m).input_layernorm.weight
    ),
    "all arrays": lambda m: m.update(tree_map(lambda x: 1 * x, m.parameters())),
    "loaded": lambda m: m.load_weights(tree_flatten(wide().parameters())),
    "another dtype": lambda m: m.set_dtype(mx.float16),
    "dtype of a layer": lambda m: last(m).set_dtype(mx.float16),
    "mixed": mixed,
    "quantised": lambda m: nn.quantize(m.model, 64, 8),
    "exchanged layers": lambda m: m.model.layers.reverse(),
    "exchanged norms": lambda m: last(m).update_modules(
        {
            "input_layernorm": last(m).post_attention_layernorm,
            "post_attention_layernorm": last(m).input_layernorm,
        }
    ),
    "dtype in place": lambda m: attention(m).o_proj.weight.__iadd__(mx.zeros(1)),
    "dtype of a norm in place": lambda m: last(m).input_layernorm.weight.__iadd__(mx.zeros(1)),
    "shape in place": lambda m: attention(m).o_proj.weight.__imul__(
        mx.ones((1, 1, 1), mx.bfloat16)
    ),
    "renamed": lambda m: last(m).mlp.up_proj.__setitem__(
        "other", last(m).mlp.up_proj.pop("weight")
    ),
}
PACKED = {
    "bits": lambda m: setattr(last(m).mlp.down_proj, "bits", 4),
    "known group size": lambda m: setattr(last(m).mlp.down_proj, "group_size", 32),
    "bits of two": quantise_again,
    "unquantised": unquantised,
    "one array": lambda m: setattr(last(m).mlp.up_proj, "biases", 2 * last(m).mlp.up_proj.biases),
    "scales in place": lambda m: last(m).mlp.up_proj.scales.__iadd__(mx.zeros(1)),
    "packed in place": lambda m: last(m).mlp.up_proj.weight.__iadd__(mx.zeros(1)),
    "bias for biases": lambda m: last(m).mlp.up_proj.__setitem__(
        "bias", last(m).mlp.up_proj.pop("biases")
    ),
}
SHARDED = {name: lambda m, change=change: change(last(m)) for name, change in SHARD_CHANGES.items()}
SHARDED["group of the sum"] = lambda m: setattr(last(m).mlp.down_proj, "group", object())
NOT_OF_LAYERS = "training", "embeddings' dtype"
ALL = [
    *[("16", name, change) for name, change in (DECODER_CHANGES | CHANGES).items()],
    *[("8", name, change) for name, change in (QUANTISED_CHANGES | PACKED).items()],
    *[("sharded", name, change) for name, change in SHARDED.items()],
]


@pytest.mark.parametrize(
    ("kind", "change"),
    [(kind, change) for kind, name, change in ALL if name not in NOT_OF_LAYERS],
    ids=[f"{kind}: {name}" for kind, name, _ in ALL if name not in NOT_OF_LAYERS],
)
def test_a_change_is_noticed(kind, change, monkeypatch):
    model = MODELS[kind]()
    before = read(model)
    assert not isinstance(before, str)
    change(model)
    after = read(model)
    assert after != before
    monkeypatch.setattr(known_layers, "find", lambda modules, sizes, check: check(modules, sizes))
    assert after == read(model)


def test_the_settings_of_all_supported_classes_are_compared():
    kinds = projections.WHOLE, projections.SHARDED_ROWS, projections.SHARDED_COLUMNS
    matrices = {kind for some in kinds for kind in (*some.plain, *some.quantized)}
    assert matrices <= known_layers._SETTINGS.keys()


def test_layers_with_other_classes_are_checked_each_time(checked, monkeypatch):
    monkeypatch.delitem(known_layers._SETTINGS, nn.RMSNorm)
    model = wide()
    assert read(model) == read(model)
    assert len(checked) == 4


def test_few_layers_are_known(monkeypatch):
    monkeypatch.setattr(known_layers, "MAX_KNOWN", 2)
    for model in (wide(16), wide(8), wide(4)):
        read(model)
    formats = [form.formats[0].bits for _, form in known_layers._known]
    assert formats == [4, 8]


@pytest.fixture
def kernels_in_mlx(kernels_in_mlx, without_collector, monkeypatch):
    """Nothing is freed by the garbage collector."""
    monkeypatch.setattr(decoder_sizes, "DTYPES", (mx.bfloat16,))


PASSES = [[(1, 70)], [(1, 5)], [(2, 5), (2, 1)]]


@pytest.mark.parametrize("shapes", PASSES, ids=str)
@pytest.mark.parametrize("bits", [16, 8])
def test_weights_that_are_replaced_are_freed_at_once(bits, shapes, kernels_in_mlx):
    model = wide(bits)
    mx.eval(run(model, empty(), shapes))
    assert uses_kernels(model)
    block = last(model)
    replaced = [attention(model).k_proj, block.mlp.down_proj, block.input_layernorm]
    arrays = [weakref.ref(module.weight) for module in replaced]
    for module in replaced:
        module.weight = mx.zeros_like(module.weight)
        mx.eval(module.weight)
    assert [array() for array in arrays] == [None, None, None]
    modules = [weakref.ref(module) for module in (model, block, block.mlp, replaced[1])]
    mx.eval(run(model, empty(), shapes))
    del model, block, replaced, module
    assert [module() for module in modules] == 4 * [None]


def test_weights_are_freed_while_they_are_joined(kernels_in_mlx, monkeypatch):
    move, old = joined_weights.move, []

    def record(block):
        modules = block.self_attn.q_proj, block.mlp.up_proj
        arrays = [weakref.ref(module.weight) for module in modules]
        move(block)
        old.extend(array() for array in arrays)

    monkeypatch.setattr(joined_weights, "move", record)
    run(wide(), empty(), [(1, 70)])
    assert old == 4 * [None]


def test_nothing_is_kept_that_the_check_does_not_read():
    model, owner = wide(), Owner()
    for module in (attention(model), attention(model).rope, last(model).mlp.up_proj):
        module.owner = owner
    assert not isinstance(read(model), str)
    assert known_layers._known
    owner = weakref.ref(owner)
    del model, module
    assert owner() is None


def test_quantising_after_a_prompt_frees_the_plain_weights(kernels_in_mlx):
    before, model = mx.get_active_memory(), wide()
    mx.eval(model.parameters(), run(model, empty(), [(1, 70)]))
    plain = mx.get_active_memory() - before
    nn.quantize(model, 64, 4)
    mx.eval(model.parameters())
    gc.collect()  # of MLX's functions that refer to themselves
    assert mx.get_active_memory() - before < plain / 2


IN_PLACE = {
    "16": (16, lambda m: attention(m).o_proj.weight.__iadd__(mx.zeros(1))),
    "joined": (16, lambda m: attention(m).k_proj.weight.__iadd__(mx.zeros(1))),
    "8": (8, lambda m: last(m).mlp.up_proj.scales.__iadd__(mx.zeros(1))),
    "norm": (8, lambda m: last(m).post_attention_layernorm.weight.__iadd__(mx.zeros(1))),
    "norm after a layer": (8, lambda m: last(m).input_layernorm.weight.__iadd__(mx.zeros(1))),
}


@pytest.mark.parametrize("shapes", PASSES, ids=str)
@pytest.mark.parametrize(("bits", "change"), IN_PLACE.values(), ids=IN_PLACE.keys())
def test_arrays_of_another_dtype_in_place_are_left_to_the_modules(
    bits, change, shapes, kernels_in_mlx, monkeypatch
):
    model = wide(bits)
    run(model, empty(), shapes)
    assert uses_kernels(model)
    change(model)
    for _ in range(2):  # the graph that could not be traced is not used the next time
        actual = run(model, empty(), shapes)
        assert not uses_kernels(model)
    monkeypatch.setattr(type(model), "engine_logits", lambda *arguments: None)
    assert relative_error(actual, run(model, empty(), shapes)) == 0


def test_the_norm_after_the_layers_is_checked(kernels_in_mlx):
    model = wide()
    sizes, x = read_sizes(model.model), mx.zeros((1, 5, 256), mx.bfloat16)
    layers = decoder_layers.read_layers(model.model, sizes)
    places = kernel.count_array(0), kv_cache.no_padding(1)
    for norm in (mx.ones(256), mx.ones(128, mx.bfloat16)):
        with pytest.raises(UnsupportedError, match="norm"):
            layerwise_graph.hidden_states(
                layers, norm, sizes, x, places, 4 * [None], {}, Tokens(1, 5)
            )
