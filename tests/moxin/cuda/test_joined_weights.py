"""Plain matrices of the same input are one matrix: what moves, what is kept, and what is freed."""

import gc

import mlx.core as mx
import numpy as np
import plain_kernels
import pytest
from cuda_support import empty, make_decoder, relative_error, run
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin.cuda import (
    device,
    joined_weights,
    layerwise,
    matmul_kernels,
    prompt_matmul,
)
from mlx_vlm.models.moxin.cuda.decoder_layers import read_layers
from mlx_vlm.models.moxin.cuda.decoder_sizes import read_sizes
from mlx_vlm.models.moxin.cuda.layer_form import QKV

LONG, SHORT = [(1, 70)], [(1, 64)]
TOLERANCE = 1e-5


@pytest.fixture
def plain(on_cpu, kernels_everywhere, monkeypatch):
    """Functions in MLX instead of kernels, and no weights that were joined before."""
    plain_kernels.use(monkeypatch)
    monkeypatch.setattr(joined_weights, "_joined", {})


def first_layer(model):
    decoder = model.model
    return read_layers(decoder, read_sizes(decoder))[0]


def weights(model):
    return {path: np.array(array) for path, array in tree_flatten(model.parameters())}


def test_a_long_prompt_moves_the_weights_and_changes_none(plain):
    model = make_decoder(mx.float32)
    before = weights(model)
    run(model, empty(), LONG)
    assert len(joined_weights._joined) == 2 * len(model.layers)
    after = weights(model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_logits_are_those_of_the_modules(plain, monkeypatch):
    model = make_decoder(mx.float32)
    actual = run(model, empty(), [*LONG, *LONG])
    assert joined_weights._joined
    monkeypatch.setattr(type(model), "engine_logits", lambda *arguments: None)
    expected = run(model, empty(), [*LONG, *LONG])
    assert relative_error(actual, expected) < TOLERANCE


@pytest.mark.parametrize("shapes", [SHORT, [(1, 5)]])
def test_a_short_prompt_moves_nothing(shapes, plain):
    run(make_decoder(mx.float32), empty(), shapes)
    assert joined_weights._joined == {}


def test_quantised_layers_stay_as_they_are(plain):
    model = make_decoder(mx.float32, bits=8)
    before = {path: array for path, array in tree_flatten(model.parameters())}
    run(model, empty(), LONG)
    assert joined_weights._joined == {}
    assert all(array is before[path] for path, array in tree_flatten(model.parameters()))


def test_weights_stay_where_they_are_if_mlx_does_not_multiply_them(plain, monkeypatch):
    monkeypatch.setattr(device, "has_warpgroups", lambda: True)
    model = make_decoder(mx.float32, intermediate_size=512)
    before = {path: array for path, array in tree_flatten(model.parameters())}
    actual = run(model, empty(), LONG)
    assert joined_weights._joined == {}
    assert all(array is before[path] for path, array in tree_flatten(model.parameters()))
    monkeypatch.setattr(prompt_matmul, "MAX_ROWS", {})
    prompt_matmul.find_order.cache_clear()
    other = make_decoder(mx.float32, intermediate_size=512)
    expected = run(other, empty(), LONG)
    assert len(joined_weights._joined) == 2 * len(other.layers)
    assert relative_error(actual, expected) < TOLERANCE


def test_each_prompt_multiplies_fewer_matrices(plain, monkeypatch):
    multiplied = []
    real = matmul_kernels.multiply

    def multiply(dtype, form, matrices, rows, *rest, **options):
        multiplied.append(matrices)
        return real(dtype, form, matrices, rows, *rest, **options)

    monkeypatch.setattr(matmul_kernels, "multiply", multiply)
    model = make_decoder(mx.float32)
    run(model, empty(), LONG)
    # One graph serves all layers; the last product is the head's.
    assert [len(matrices) for matrices in multiplied] == [1, 1, 1, 1, 1]


def test_a_weight_that_is_replaced_is_joined_again_and_the_old_one_freed(plain):
    model = make_decoder(mx.float32)
    run(model, empty(), LONG)
    old = {key: id(entry.whole) for key, entry in joined_weights._joined.items()}
    attention = model.layers[0].self_attn
    attention.k_proj.weight = 2 * attention.k_proj.weight
    gc.collect()
    assert len(joined_weights._joined) == len(old) - 1
    assert joined_weights.join(first_layer(model)) is None
    actual = run(model, empty(), LONG)
    (qkv,) = joined_weights.join(first_layer(model)).projections[QKV].arrays
    parts = [attention[name].weight for name in ("q_proj", "k_proj", "v_proj")]
    assert mx.array_equal(qkv, mx.concatenate(parts)).item()
    assert not mx.array_equal(actual, run(make_decoder(mx.float32), empty(), LONG)).item()


def test_steps_that_are_traced_as_a_whole_leave_the_weights_joined(plain, monkeypatch):
    monkeypatch.setattr(layerwise, "STEADY_STEPS", 1)
    model = make_decoder(mx.float32)
    run(model, empty(), LONG)
    wholes = [entry.whole for entry in joined_weights._joined.values()]
    run(model, empty(), [(3, 5), *3 * [(3, 1)]])
    run(model, empty(), LONG)
    after = [entry.whole for entry in joined_weights._joined.values()]
    assert len(after) == 2 * len(model.layers)
    assert all(whole is old for whole, old in zip(after, wholes))


def assign(weight):
    weight[:, 3] = 1


WRITES = {
    "product": lambda weight: weight.__imul__(2),
    "computed product": lambda weight: mx.eval(weight.__imul__(2)),
    "with itself": lambda weight: weight.__iadd__(weight),
    "column": assign,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("name", ["q_proj", "k_proj", "gate_proj"])
def test_a_weight_that_is_written_in_place_is_joined_again(name, write, plain, monkeypatch):
    model = make_decoder(mx.float32)
    before = run(model, empty(), LONG)
    block = model.layers[0]
    write({**block.self_attn, **block.mlp}[name].weight)
    actual = run(model, empty(), LONG)
    assert len(joined_weights._joined) == 2 * len(model.layers)
    assert joined_weights.join(first_layer(model)) is not None
    monkeypatch.setattr(type(model), "engine_logits", lambda *arguments: None)
    expected = run(model, empty(), LONG)
    assert relative_error(actual, expected) < TOLERANCE
    assert relative_error(before, expected) > 1e-3


def test_views_of_the_matrix_are_stored_once(plain):
    model = make_decoder(mx.float32)
    run(model, empty(), LONG)
    attention = model.layers[0].self_attn
    parts = [
        np.array(attention[name].weight, copy=False) for name in ("q_proj", "k_proj", "v_proj")
    ]
    assert all(part.flags["C_CONTIGUOUS"] for part in parts)
    ends = [part.ctypes.data + part.nbytes for part in parts]
    assert [part.ctypes.data for part in parts[1:]] == ends[:-1]


def test_nothing_is_kept_of_a_model_that_is_gone(plain):
    model = make_decoder(mx.float32)
    run(model, empty(), LONG)
    del model
    gc.collect()
    assert joined_weights._joined == {}
