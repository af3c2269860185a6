"""A launch of the towers has one array for each: what moves, what is noticed, and what is freed."""

import copy
import gc
import weakref

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from cuda_support import computing_on, needs_gpu
from mlx.optimizers import SGD
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.lora import LoRALinear
from mlx_vlm.models.moxin.cuda import device, tower_kernel, tower_layers, towers
from mlx_vlm.models.moxin.cuda.errors import UnsupportedError
from mlx_vlm.models.moxin.cuda.joined_arrays import JoinedArrays
from mlx_vlm.models.moxin.cuda.kernel import ALIGNMENT
from mlx_vlm.models.moxin.cuda.tower_layers import (
    active_layers,
    joined,
    make_pairs,
    places,
    stages,
)
from test_towers import make_model, plain_layers


@pytest.fixture(autouse=True, params=["cpu", pytest.param("gpu", marks=needs_gpu)])
def without_kernels(request, kernels_everywhere, monkeypatch):
    """Nothing is computed by kernels, but arrays are moved by either backend of MLX.

    DINOv2 has two layers and SigLIP four, so the last of three launches has none of the former.
    """
    monkeypatch.setattr(tower_kernel, "FIRST_LAYERS", 1)
    monkeypatch.setattr(tower_kernel, "LAYERS_AT_ONCE", 2)
    # Of no device: that of MLX may be the CPU, which has no compute capability.
    monkeypatch.setattr(device, "has_warpgroups", lambda: False)
    with computing_on(getattr(mx, request.param)):
        yield


@pytest.fixture
def model():
    return make_model()


def launches(model):
    return [joined(pairs) for pairs in stages(make_pairs(model.towers))]


def read(found):
    """The arrays of each launch as they are now."""
    for launch in found:
        launch.update()
    return [launch.arrays for launch in found]


def wholes(found):
    return [whole for arrays in read(found) for whole in arrays]


def parts(layer):
    return [module[name] for module, name in places(layer)]


def layers_of_wholes(model):
    """The layers that each of ``wholes`` contains."""
    found = [
        active_layers(pairs, which)
        for pairs in stages(make_pairs(model.towers))
        for which in range(2)
    ]
    return [layers for layers in found if layers]


def raw(array):
    return np.array(array.flatten().view(mx.uint8))


def assert_joined(model, found):
    """Each array contains its layers' arrays in order, and those are views of it."""
    for whole, layers in zip(wholes(found), layers_of_wholes(model), strict=True):
        words, at = raw(whole), 0
        start = np.array(whole, copy=False).ctypes.data
        for part in (part for layer in layers for part in parts(layer)):
            assert np.array_equal(words[at : at + part.nbytes], raw(part))
            view = np.array(part.view(mx.uint8), copy=False)
            assert view.flags["C_CONTIGUOUS"]
            assert view.ctypes.data - start == at
            at += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
        assert at == words.size


def test_a_launch_has_one_array_for_each_tower_and_no_weight_changes(model):
    before = {path: raw(array) for path, array in tree_flatten(model.parameters())}
    found = launches(model)
    assert [len(arrays) for arrays in read(found)] == [2, 2, 1]
    assert_joined(model, found)
    after = {path: raw(array) for path, array in tree_flatten(model.parameters())}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_joined_towers_need_no_more_memory(model):
    mx.eval(model.parameters())
    gc.collect()
    before = mx.get_active_memory()
    found = launches(model)
    read(found)
    gc.collect()
    padding = 6 * len(tower_kernel.PARAMETERS) * ALIGNMENT
    assert mx.get_active_memory() - before <= padding + 2**16


def test_layers_are_moved_once(model):
    first, again = wholes(launches(model)), wholes(launches(model))
    assert all(a is b for a, b in zip(first, again, strict=True))


def replace(model):
    norm = model.siglip.blocks[1].norm1
    norm.bias = 2 * norm.bias


def multiply(model):
    model.siglip.blocks[1].mlp.fc2.weight *= 2


def assign(model):
    model.siglip.blocks[2].attn.qkv.weight[3] = 1


def change_places(model):
    norms = model.siglip.blocks[1]
    norms.norm1, norms.norm2 = norms.norm2, norms.norm1


@pytest.mark.parametrize("change", [replace, multiply, assign, change_places])
def test_layers_that_change_are_moved(change, model):
    found = launches(model)
    first = wholes(found)
    change(model)
    assert_joined(model, found)
    moved = [a is not b for a, b in zip(first, wholes(found), strict=True)]
    assert moved == [False, False, False, True, False]


FEATURES = {
    "replaced": replace,
    "product": multiply,
    "row": assign,
    "places": change_places,
    "LayerScale": lambda m: m.dino.blocks[0].update({"ls1": {"gamma": mx.zeros(128)}}),
    "first layer": lambda m: m.dino.blocks[0].mlp.fc1.update({"weight": mx.zeros((512, 128))}),
    "all": lambda m: m.update(tree_map(lambda x: 1.1 * x, m.parameters())),
    "layer": lambda m: m.siglip.blocks.reverse(),
    "adapter": lambda m: adapt(m),
}


@pytest.mark.parametrize("change", FEATURES.values(), ids=FEATURES.keys())
def test_features_are_those_of_the_modules_as_they_are(change, on_cpu, monkeypatch):
    monkeypatch.setattr(tower_layers, "DTYPES", (mx.float32,))
    calls = []
    monkeypatch.setattr(
        tower_kernel, "tower_layers", lambda *args: calls.append(args) or plain_layers(*args)
    )
    model, pixels = make_model(mx.float32), mx.random.normal((1, 6, 140, 140))
    monkeypatch.setattr(type(model), "engine_embed", lambda *_: None)
    for _ in range(2):
        mx.eval(model(pixels))
    assert len(calls) == 3  # traced once
    change(model)
    actual = model(pixels)
    with monkeypatch.context() as patch:
        patch.setattr(device, "enabled", lambda: False)
        assert mx.allclose(actual, model(pixels), atol=1e-4).item()


def adapt(model):
    mlp = model.siglip.blocks[3].mlp
    mlp.fc1 = LoRALinear.from_base(mlp.fc1)
    mlp.fc1.lora_b = mx.ones_like(mlp.fc1.lora_b)


def replace_norm(model):
    model.siglip.blocks[3].norm2 = nn.Identity()


def replace_attention(model):
    model.siglip.blocks[3].attn = nn.Identity()


def share_norm(model):
    model.siglip.blocks[1].norm1 = model.siglip.blocks[2].norm1


def share_array(model):
    one, other = model.siglip.blocks[1:3]
    one.mlp.fc1.weight = other.mlp.fc1.weight


@pytest.mark.parametrize(
    "change", [adapt, replace_norm, replace_attention, share_norm, share_array]
)
@pytest.mark.parametrize("is_read", [False, True])
def test_other_layers_are_refused(change, is_read, model):
    found = launches(model)
    if is_read:
        read(found)
    change(model)
    for _ in range(2):
        with pytest.raises(UnsupportedError):
            read(found)


def test_models_that_share_a_tower_share_what_was_moved(model):
    other = make_model()
    first = wholes(launches(model))
    other.siglip = model.siglip
    shared = wholes(launches(other))
    same = [a is b for a, b in zip(first, shared, strict=True)]
    assert same == [False, True, False, True, True]
    assert all(a is b for a, b in zip(wholes(launches(model)), first, strict=True))


def test_a_copy_has_its_own_arrays(model):
    first = wholes(launches(model))
    other = copy.deepcopy(model)
    assert not any(a is b for a, b in zip(wholes(launches(other)), first, strict=True))
    assert all(a is b for a, b in zip(wholes(launches(model)), first, strict=True))
    assert_joined(other, launches(other))


def test_saved_weights_are_as_before(model, tmp_path):
    before = {path: raw(array) for path, array in tree_flatten(model.parameters())}
    wholes(launches(model))
    model.save_weights(str(tmp_path / "model.safetensors"))
    after = mx.load(str(tmp_path / "model.safetensors"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path], raw(after[path])) for path in before)


def test_a_step_of_training_is_as_before_and_is_noticed(on_cpu, monkeypatch):
    monkeypatch.setattr(tower_layers, "DTYPES", (mx.float32,))
    pixels = mx.random.normal((1, 6, 140, 140))

    def train(model):
        model.train()
        loss, gradients = nn.value_and_grad(model, lambda: model(pixels).square().mean())()
        SGD(1e-2).update(model, gradients)
        model.eval()
        return loss.item()

    model, other = make_model(mx.float32), make_model(mx.float32)
    found = launches(model)
    first = wholes(found)
    assert train(model) == train(other)
    pairs = zip(tree_flatten(model.parameters()), tree_flatten(other.parameters()), strict=True)
    assert all(mx.array_equal(actual, expected).item() for (_, actual), (_, expected) in pairs)
    assert not any(a is b for a, b in zip(first, wholes(found), strict=True))
    assert_joined(model, found)


def test_nothing_is_kept_of_weights_that_were_replaced(model, without_collector):
    found = launches(model)
    kept = [weakref.ref(whole) for whole in wholes(found)]
    for tower in model.towers:
        for layer in tower.blocks:
            for module, name in places(layer):
                module[name] = 1 * module[name]
    assert [reference() for reference in kept] == [None] * 5
    assert_joined(model, found)


def test_nothing_is_kept_of_a_model_that_is_gone(without_collector):
    model = make_model()
    found = launches(model)
    kept = [weakref.ref(whole) for whole in wholes(found)]
    kept += [weakref.ref(part) for layer in model.siglip.blocks for part in parts(layer)]
    del model, found
    gc.collect()
    assert all(reference() is None for reference in kept)


def test_a_pass_leaves_the_arrays_joined(on_cpu, monkeypatch):
    monkeypatch.setattr(tower_layers, "DTYPES", (mx.float32,))
    monkeypatch.setattr(tower_kernel, "tower_layers", plain_layers)
    model = make_model(mx.float32)
    first = wholes(launches(model))
    for count in (1, 2):  # another number of pictures is traced again
        tokens = [mx.zeros((count, 100 + 5 * (width == 128), width)) for width in (128, 144)]
        assert towers.blocks(model, model.towers, tokens) is not None
    assert all(a is b for a, b in zip(wholes(launches(model)), first, strict=True))
    assert not any(launch.update() for launch in launches_of_engine(model))


def test_layers_are_compared_while_the_gpu_computes(on_cpu, monkeypatch):
    monkeypatch.setattr(tower_layers, "DTYPES", (mx.float32,))
    monkeypatch.setattr(tower_kernel, "tower_layers", plain_layers)
    model, events = make_model(mx.float32), []
    tokens = [mx.ones((1, 100 + 5 * (width == 128), width)) for width in (128, 144)]

    def run():
        events.clear()
        return towers.blocks(model, model.towers, tokens)

    mx.eval(run())
    submit, update = mx.async_eval, JoinedArrays.update
    monkeypatch.setattr(mx, "async_eval", lambda *xs: events.append("submit") or submit(*xs))
    monkeypatch.setattr(JoinedArrays, "update", lambda it: events.append("compare") or update(it))
    before = run()
    assert events == 2 * ["submit"] + 3 * ["compare"]
    replace(model)
    after = run()
    assert events == 2 * ["submit"] + 3 * ["compare"] + 2 * ["submit"]
    assert not mx.array_equal(before[1], after[1]).item()


def launches_of_engine(model):
    return [stage._joined for stage in towers.engines.get(model)._stages]
