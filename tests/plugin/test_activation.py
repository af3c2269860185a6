"""The finder: the installed model is found, importing stays cheap, other models are unaffected."""

import json
import os
import sys
from pathlib import Path

import pytest
from support import HF_CHECKPOINT, run_module, run_python

import mlx_vlm_moxin
from mlx_vlm_moxin import _MoxinFinder, register


def test_starting_python_registers_the_finder_and_imports_nothing_heavy():
    code = """
import json, sys
names = [finder.__name__ for finder in sys.meta_path if hasattr(finder, "__name__")]
print(json.dumps([names, sorted(sys.modules)]))
"""
    finders, modules = json.loads(run_python(code))
    assert finders[-1] == "_MoxinFinder"
    assert "mlx_vlm_moxin" in modules
    assert not [name for name in modules if name.startswith("mlx_vlm_moxin.")]


def test_registering_imports_this_package_alone():
    code = """
import sys
sys.path.append(sys.argv[1])
before = set(sys.modules)
import mlx_vlm_moxin
mlx_vlm_moxin.register()
print(sorted(set(sys.modules) - before))
"""
    # -S: no start-up files, so that only this import counts.
    root = Path(mlx_vlm_moxin.__file__).parents[1]
    assert run_python(code, root, options=["-S"]).strip() == "['mlx_vlm_moxin']"


def test_registering_twice_adds_one_finder():
    register()
    register()
    assert sys.meta_path.count(_MoxinFinder) == 1


def test_other_models_do_not_load_moxin():
    code = """
import sys
import mlx_vlm.models.llama
from mlx_vlm.prompt_utils import MODEL_CONFIG
print([n for n in sys.modules if "moxin" in n and "." in n], "moxin" in MODEL_CONFIG)
"""
    assert run_python(code).strip() == "[] False"


def test_prismatic_is_the_same_module_and_both_types_are_registered():
    code = """
import importlib
from mlx_vlm.utils import get_model_and_args
first, _ = get_model_and_args({"model_type": "prismatic"})
second, _ = get_model_and_args({"model_type": "moxin"})
from mlx_vlm.prompt_utils import MODEL_CONFIG, SINGLE_IMAGE_ONLY_MODELS
from mlx_vlm.trainer.datasets.next_token import NATIVE_PREPROCESS_MODELS
assert first is second is importlib.import_module("mlx_vlm.models.prismatic")
assert first.__spec__.name == first.__name__ == "mlx_vlm.models.moxin"
for table in (MODEL_CONFIG, SINGLE_IMAGE_ONLY_MODELS, NATIVE_PREPROCESS_MODELS):
    assert {"moxin", "prismatic"} <= set(table)
print("ok")
"""
    assert run_python(code, is_warm=True).strip() == "ok"
    reverse = "import mlx_vlm.trainer.datasets.next_token as n, mlx_vlm.models.moxin;"
    shown = "print('moxin' in n.NATIVE_PREPROCESS_MODELS)"
    assert run_python(reverse + shown, is_warm=True).strip() == "True"


def test_a_moxin_of_mlx_vlms_own_wins(tmp_path):
    (tmp_path / "moxin").mkdir()
    (tmp_path / "moxin" / "__init__.py").write_text("OWNER = 'mlx-vlm'\n", encoding="utf-8")
    code = """
import sys
import mlx_vlm.models
mlx_vlm.models.__path__.append(sys.argv[1])
import mlx_vlm.models.moxin, mlx_vlm.models.prismatic
print(mlx_vlm.models.moxin.OWNER, mlx_vlm.models.prismatic.OWNER)
"""
    assert run_python(code, tmp_path, is_warm=True).strip() == "mlx-vlm mlx-vlm"


@pytest.mark.parametrize("model_type", ["moxin", "prismatic"])
def test_an_import_that_fails_is_not_taken_for_an_unknown_model_type(model_type):
    code = """
import sys
import mlx_vlm.models.llama.language
del mlx_vlm.models.llama.language.LlamaModel
from mlx_vlm.utils import get_model_and_args
try:
    get_model_and_args({"model_type": sys.argv[1]})
except RuntimeError as error:
    print(error)
"""
    message = run_python(code, model_type, is_warm=True)
    assert f"mlx-vlm-moxin {mlx_vlm_moxin.__version__} cannot be loaded into mlx-vlm " in message
    assert "LlamaModel" in message


@pytest.mark.parametrize(("value", "is_found"), [("1", False), ("0", True), ("", True)])
def test_a_variable_switches_it_off(value, is_found, monkeypatch):
    code = """
import importlib.util, sys
import mlx_vlm.models
print([importlib.util.find_spec(name) is not None for name in sys.argv[1:]])
"""
    monkeypatch.setenv("MLX_VLM_MOXIN_DISABLE", value)
    names = ("mlx_vlm.models.moxin", "mlx_vlm.models.prismatic", "mlx_lm.models.moxin")
    assert run_python(code, *names, is_warm=True).strip() == str([is_found] * 3)


def test_switched_off_mlx_vlm_does_not_know_the_model_and_our_commands_say_why():
    off = {"MLX_VLM_MOXIN_DISABLE": "1"}
    stock = run_module("mlx_vlm", "generate", "--model", HF_CHECKPOINT, env=off)
    assert (
        stock.stderr.strip()
        .splitlines()[-1]
        .startswith("ValueError: Model type prismatic not supported")
    )
    ours = run_module("mlx_vlm_moxin", "generate", "--model", HF_CHECKPOINT, env=off)
    assert ours.returncode == 2
    assert "MLX_VLM_MOXIN_DISABLE is set" in ours.stderr.splitlines()[-1]
    code = """
try:
    from mlx_vlm_moxin import load
except ImportError as error:
    print(error)
"""
    assert "MLX_VLM_MOXIN_DISABLE is set" in run_python(code, env={**os.environ, **off})
