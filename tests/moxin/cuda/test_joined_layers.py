"""A packed layer is one array: what moves, what is noticed, and what is freed."""

import gc
import weakref

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from cuda_support import computing_on, make_decoder, needs_gpu
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_vlm.models.moxin.cuda.decoder_layers import layer_modules, read_layers
from mlx_vlm.models.moxin.cuda.decoder_sizes import read_sizes
from mlx_vlm.models.moxin.cuda.errors import UnsupportedError
from mlx_vlm.models.moxin.cuda.joined_layers import JoinedLayers, can_join
from mlx_vlm.models.moxin.cuda.kernel import ALIGNMENT
from mlx_vlm.models.moxin.cuda.layer_form import joined_offsets
from mlx_vlm.models.moxin.cuda.step_graphs import StepGraphs


@pytest.fixture(autouse=True, params=["cpu", pytest.param("gpu", marks=needs_gpu)])
def without_kernels(request, kernels_everywhere):
    """Nothing is computed by kernels, but arrays are moved by either backend of MLX."""
    with computing_on(getattr(mx, request.param)):
        yield


@pytest.fixture
def model():
    return make_decoder(bits=8)


def forms(model):
    return [layer.form for layer in read_layers(model.model, read_sizes(model.model))]


def read(model, joined):
    return joined.read(read_sizes(model.model))


def wholes(model, joined):
    return [layer.arrays[0] for layer in read(model, joined)]


def expected_parts(model):
    """What the arrays of each layer are, in the order in which the kernels read them."""
    return [layer.arrays for layer in read_layers(model.model, read_sizes(model.model))]


def assert_joined(model, joined):
    """Each layer is one array with the contents of all others."""
    form = forms(model)[0]
    for whole, parts in zip(wholes(model, joined), expected_parts(model), strict=True):
        assert whole.shape == (joined_offsets(form)[-1],)
        words = np.array(whole).view(np.uint8)
        for part, start in zip(parts, joined_offsets(form)):
            raw = np.array(part.flatten().view(mx.uint8))
            assert np.array_equal(words[4 * start : 4 * start + raw.size], raw)


# The last one has arrays between which there is a gap.
SMALL = {"hidden_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1}


@pytest.mark.parametrize(
    ("bits", "group_size", "config"), [(8, 64, {}), (4, 32, {}), (8, 32, {}), (8, 64, SMALL)]
)
def test_a_layer_is_one_array_and_no_weight_changes(bits, group_size, config):
    model = make_decoder(mx.bfloat16, bits, group_size, **config)
    before = {path: np.array(x.view(mx.uint8)) for path, x in tree_flatten(model.parameters())}
    joined = JoinedLayers(model.model)
    assert_joined(model, joined)
    after = {path: np.array(x.view(mx.uint8)) for path, x in tree_flatten(model.parameters())}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_the_modules_arrays_are_views_that_are_stored_once(model):
    joined = JoinedLayers(model.model)
    for whole, parts in zip(wholes(model, joined), expected_parts(model)):
        start = np.array(whole, copy=False).ctypes.data
        for part, offset in zip(parts, joined_offsets(forms(model)[0])):
            view = np.array(part.view(mx.uint8), copy=False)
            assert view.flags["C_CONTIGUOUS"]
            assert view.ctypes.data - start == 4 * offset
            assert 4 * offset % ALIGNMENT == 0


def test_joined_layers_need_no_more_memory(model):
    mx.eval(model.parameters())
    gc.collect()
    before = mx.get_active_memory()
    joined = JoinedLayers(model.model)
    read(model, joined)
    gc.collect()
    padding = 2 * 23 * ALIGNMENT
    assert abs(mx.get_active_memory() - before) <= padding + 2**16


def test_layers_are_moved_once(model):
    joined = JoinedLayers(model.model)
    first = wholes(model, joined)
    assert all(a is b for a, b in zip(wholes(model, joined), first, strict=True))
    again = wholes(model, joined)
    mx.eval(2 * model.model.layers[0].mlp.up_proj.scales)
    assert all(a is b for a, b in zip(again, first))


def test_models_that_share_layers_share_what_was_moved(model):
    joined, other = JoinedLayers(model.model), make_decoder(bits=8)
    first = wholes(model, joined)
    other.model.layers = model.model.layers[:1]
    (shared,) = wholes(other, JoinedLayers(other.model))
    assert shared is first[0]
    assert all(a is b for a, b in zip(wholes(model, joined), first, strict=True))


@pytest.mark.parametrize("make", [lambda: make_decoder(), lambda: mixed()], ids=["plain", "mixed"])
def test_layers_with_plain_matrices_stay_as_they_are(make):
    model = make()
    before = dict(tree_flatten(model.parameters()))
    assert not can_join(forms(model))
    joined = JoinedLayers(model.model)
    assert read(model, joined) is None
    assert read(model, joined) is None
    assert all(array is before[path] for path, array in tree_flatten(model.parameters()))


def share_norm(model):
    model.model.layers[1].input_layernorm = model.model.layers[0].input_layernorm


def share_array(model):
    model.model.layers[1].mlp.up_proj.biases = model.model.layers[0].mlp.up_proj.biases


@pytest.mark.parametrize("share", [share_norm, share_array])
@pytest.mark.parametrize("is_read", [False, True])
def test_layers_that_share_arrays_stay_as_they_are(share, is_read, model):
    joined = JoinedLayers(model.model)
    if is_read:
        read(model, joined)
    share(model)
    before = dict(tree_flatten(model.parameters()))
    assert read(model, joined) is None
    assert read(model, joined) is None
    assert all(array is before[path] for path, array in tree_flatten(model.parameters()))


def mixed():
    model = make_decoder()
    nn.quantize(model, class_predicate=lambda path, module: path.endswith("down_proj"))
    return model


def test_a_weight_that_is_replaced_is_moved(model):
    joined = JoinedLayers(model.model)
    first = wholes(model, joined)
    matrix = model.model.layers[1].mlp.down_proj
    matrix.scales = 2 * matrix.scales
    assert_joined(model, joined)
    second = wholes(model, joined)
    assert [a is b for a, b in zip(first, second)] == [True, False]


def assign(array):
    array[3] = 1


WRITES = {
    "product": lambda array: array.__imul__(2),
    "computed product": lambda array: mx.eval(array.__imul__(2)),
    "with itself": lambda array: array.__iadd__(array),
    "row": assign,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("which", [0, 3, 5, 12])  # a norm, scales, packed weights
def test_an_array_that_is_written_in_place_is_moved(which, write, model):
    joined, other = JoinedLayers(model.model), JoinedLayers(model.model)
    first = wholes(model, joined)
    write(expected_parts(model)[0][which])
    assert_joined(model, joined)
    assert [a is b for a, b in zip(first, wholes(model, joined))] == [False, True]
    assert_joined(model, other)


def test_arrays_that_change_places_are_moved(model):
    joined = JoinedLayers(model.model)
    read(model, joined)
    attention = model.model.layers[0].self_attn
    attention.k_proj, attention.v_proj = attention.v_proj, attention.k_proj
    assert_joined(model, joined)


def test_an_array_that_was_written_does_not_keep_the_layer(model, without_collector):
    joined = JoinedLayers(model.model)
    kept = weakref.ref(wholes(model, joined)[0])
    array = expected_parts(model)[0][0]
    array *= 2
    read(model, joined)
    assert kept() is None
    assert array.shape == (256,)


def add_bias(model):
    model.model.layers[1].self_attn.q_proj.bias = mx.zeros(512)


def replace_matrix(model):
    model.model.layers[1].mlp.up_proj = nn.Linear(256, 576, bias=True)


def replace_with_adapter(model):
    attention = model.model.layers[1].self_attn
    attention.v_proj = LoRALinear.from_base(attention.v_proj)


def replace_layer(model):
    model.model.layers[1] = nn.Identity()


def replace_mlp(model):
    model.model.layers[1].mlp = nn.Identity()


@pytest.mark.parametrize(
    "change", [add_bias, replace_matrix, replace_with_adapter, replace_layer, replace_mlp]
)
def test_other_layers_are_refused(change, model):
    joined = JoinedLayers(model.model)
    read(model, joined)
    change(model)
    with pytest.raises(UnsupportedError):
        read(model, joined)
    with pytest.raises(UnsupportedError):
        read(model, joined)


def test_a_matrix_of_another_dtype_is_refused(model):
    joined = JoinedLayers(model.model)
    read(model, joined)
    scales = model.model.layers[1].mlp.up_proj.scales
    scales *= mx.array(2.0)
    assert scales.dtype == mx.float32
    with pytest.raises(UnsupportedError):
        read(model, joined)


def test_matrices_of_other_formats_are_joined_in_their_form(model):
    joined, other = JoinedLayers(model.model), make_decoder(bits=4)
    first = read(model, joined)
    for matrix, source in zip(layer_modules(model.layers[1]), layer_modules(other.layers[1])):
        if isinstance(matrix, nn.QuantizedLinear):
            matrix.bits = 4
            matrix.update(source.parameters())
    second = read(model, joined)
    assert second[0].form is first[0].form
    assert second[1].form is not first[1].form
    assert second[1].formats[0].bits == 4


def test_a_layer_that_is_replaced_is_moved(model):
    joined, other = JoinedLayers(model.model), make_decoder(bits=8, rope_theta=10000.0)
    read(model, joined)
    model.model.layers[0] = other.model.layers[1]
    assert_joined(model, joined)
    model.model.layers.reverse()
    assert_joined(model, joined)


def test_nothing_is_kept_of_weights_that_were_all_replaced(model, without_collector):
    joined = JoinedLayers(model.model)
    kept = [weakref.ref(whole) for whole in wholes(model, joined)]
    for block in model.layers:
        for module in layer_modules(block):
            module.update({name: 1 * array for name, array in module.items()})
    assert [reference() for reference in kept] == [None, None]
    assert_joined(model, joined)


def test_nothing_is_kept_of_a_model_that_is_gone(without_collector):
    model = make_decoder(bits=8)
    joined = JoinedLayers(model.model)
    kept = [weakref.ref(array) for array in wholes(model, joined)]
    kept += [weakref.ref(array) for parts in expected_parts(model) for array in parts]
    del model, joined
    gc.collect()
    assert all(reference() is None for reference in kept)


def sum_step(decoder, head, sizes, x, layers):
    """A step that computes something with every array that it should receive."""
    arrays = [array for layer in layers for array in layer.arrays]
    arrays += [decoder.embed_tokens(x), decoder.norm.weight, head.weight, head.scales]
    return [mx.stack([array.astype(mx.float32).sum() for array in arrays])]


def replace_embedding(model):
    model.model.embed_tokens = nn.Embedding(300, 256)
    model.model.embed_tokens.set_dtype(mx.bfloat16)


def replace_norm(model):
    model.model.norm.weight = 3 * model.model.norm.weight


def write_head(model):
    model.lm_head.scales *= 2
    model.lm_head.weight = model.lm_head.weight + 1


def replace_scales(model):
    matrix = model.layers[0].self_attn.v_proj
    matrix.biases = matrix.biases + 1


def write_weight(model):
    model.layers[1].mlp.gate_proj.weight[0] = 7


@pytest.mark.parametrize(
    "change", [replace_embedding, replace_norm, write_head, replace_scales, write_weight]
)
def test_a_step_notices_what_changed_since_the_last_one(change, model):
    def result(graphs):
        return graphs(read_sizes(model.model), 0)(mx.array([[5]]))[0].tolist()

    def fresh():
        return StepGraphs(sum_step, model.model, model.lm_head, 2)

    graphs = fresh()
    before = result(graphs)
    assert result(graphs) == before
    change(model)
    assert result(graphs) == result(fresh()) != before


def test_a_trace_leaves_the_arrays_joined(model):
    joined = JoinedLayers(model.model)
    graphs = StepGraphs(sum_step, model.model, model.lm_head, 2)
    first = wholes(model, joined)
    graphs(read_sizes(model.model), 0)(mx.array([[5]]))
    assert all(a is b for a, b in zip(wholes(model, joined), first))
