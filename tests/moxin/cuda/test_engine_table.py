"""Engines are kept outside the modules: a copy gets a new one, a deleted model frees its own."""

import copy
import shutil
import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import pytest
from cuda_support import empty, make_decoder
from mlx.utils import tree_map
from mlx_vlm.models.moxin.cuda import decoder, tower_layers, towers
from mlx_vlm.models.moxin.cuda.engine_table import EngineTable
from test_towers import make_model, plain_layers

from mlx_vlm_moxin.plugin import import_specs

IDS = mx.array([[5, 6, 7]])


@pytest.fixture
def kernels_in_mlx(kernels_in_mlx, without_collector, monkeypatch):
    """The towers' kernels too, in float32."""
    monkeypatch.setattr(towers.kernels, "tower_layers", plain_layers)
    monkeypatch.setattr(tower_layers, "DTYPES", (mx.float32,))


def answer(model):
    """Logits of a prompt and of one token after it."""
    cache = empty()
    prompt = model(IDS, cache=cache).logits
    return mx.concatenate([prompt, model(IDS[:, :1], cache=cache).logits], axis=1)


def see(model):
    return model(mx.ones((1, 6, 140, 140)))


DECODER = (lambda: make_decoder(mx.float32, intermediate_size=640), answer, decoder.engines)
TOWERS = (lambda: make_model(mx.float32), see, towers.engines)


@pytest.mark.parametrize(("make", "run", "engines"), [DECODER, TOWERS], ids=["decoder", "towers"])
def test_a_copy_computes_with_its_own_weights(make, run, engines, kernels_in_mlx):
    model = make()
    before = run(model)
    other = copy.deepcopy(model)
    other.update(tree_map(lambda x: 2 * x, other.parameters()))
    after = run(other)
    assert engines.get(model) is not None
    assert engines.get(other) is not engines.get(model)
    assert mx.abs(after - before).max().item() > 1e-2
    assert mx.allclose(run(model), before).item()


@pytest.mark.parametrize(("make", "run", "engines"), [DECODER, TOWERS], ids=["decoder", "towers"])
def test_a_deleted_model_frees_its_memory_at_once(make, run, engines, kernels_in_mlx):
    before, count = mx.get_active_memory(), len(engines)
    model = make()
    size = sum(array.nbytes for _, array in nn.utils.tree_flatten(model.parameters()))
    mx.eval(run(model))
    assert len(engines) == count + 1
    assert mx.get_active_memory() - before >= size
    del model
    assert len(engines) == count
    assert mx.get_active_memory() - before < size / 10


def test_replaced_parts_get_a_new_engine(kernels_in_mlx):
    model = make_decoder(mx.float32, intermediate_size=640)
    before = answer(model)
    other = make_decoder(mx.float32, intermediate_size=640)
    other.update(tree_map(lambda x: 2 * x, other.parameters()))
    model.model = other.model
    assert mx.abs(answer(model) - before).max().item() > 1e-2


def test_a_new_module_at_the_same_address_has_no_engine():
    table, module = EngineTable(), nn.Linear(2, 2)
    table.find(module, lambda engine: True, lambda: "engine")
    key = id(module)
    del module
    assert len(table) == 0
    others = [nn.Linear(2, 2) for _ in range(100)]
    assert all(table.get(other) is None for other in others if id(other) == key)


def test_the_model_works_without_the_folder_of_kernels(tmp_path):
    folder = tmp_path / "moxin"
    ignored = shutil.ignore_patterns("cuda", "__pycache__")
    shutil.copytree(import_specs.MODEL_DIR, folder, ignore=ignored)
    code = f"""
import pathlib, sys
from mlx_vlm_moxin.plugin import import_specs
import_specs.MODEL_DIR = pathlib.Path({str(folder)!r})
import mlx.core as mx
from mlx_vlm.models.moxin import LanguageModel, TextConfig
sizes = dict(hidden_size=64, intermediate_size=64, num_attention_heads=1, num_key_value_heads=1)
model = LanguageModel(TextConfig(num_hidden_layers=1, vocab_size=9, **sizes))
assert model(mx.array([[1, 2]])).logits.shape == (1, 2, 9)
assert not [name for name in sys.modules if name.startswith("mlx_vlm.models.moxin.cuda")]
assert sys.modules["mlx_vlm.models.moxin"].__file__.startswith({str(folder)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
