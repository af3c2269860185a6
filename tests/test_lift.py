"""The model folder, copied into mlx-vlm as by a pull request, works without this package.

docs/lifting.md lists the parts of such a pull request; its code blocks are applied here.
"""

import re
import shutil
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx_vlm
import pytest
from environments import light_environment, pip
from moxin_tiny import CHECKPOINT, DEMO
from moxin_tiny.demo import QUESTIONS
from support import run_module

import mlx_vlm_moxin

MODEL_FOLDER = Path(mlx_vlm_moxin.__file__).parent / "moxin"
PAGE = Path(__file__).parents[1] / "docs" / "lifting.md"
# The page's code blocks: rows of three tables, the lines that attach the kernels, their files.
REMAPPING, FORMATS, SINGLE_IMAGE, ATTACH, PACKAGE_DATA = (
    textwrap.dedent(block)
    for block in re.findall(r"```(?:python|toml)\n(.*?) +```", PAGE.read_text("utf-8"), re.DOTALL)
)
# What mlx-vlm's pyproject.toml says about its files.
PYPROJECT = """
[build-system]
requires = ["setuptools>=61.0", "wheel"]
build-backend = "setuptools.build_meta"

[project]
name = "mlx-vlm"
version = "{version}"

[tool.setuptools.packages.find]
include = ["mlx_vlm*"]
exclude = ["mlx_vlm.tests*"]

"""


def add_rows(file: Path, block: str) -> None:
    """Insert rows after the first line of their table."""
    line = block.partition("\n")[0]
    text = file.read_text(encoding="utf-8")
    assert text.count(f"\n{line}\n") == 1
    file.write_text(text.replace(f"\n{line}\n", f"\n{block}"), encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """mlx-vlm's source tree with the pull request applied."""
    root = tmp_path_factory.mktemp("source")
    package = root / "mlx_vlm"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(mlx_vlm.__file__).parent, package, ignore=ignored)
    shutil.copytree(MODEL_FOLDER, package / "models" / "moxin", ignore=ignored)
    with (package / "models" / "moxin" / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(f"\n{ATTACH}")
    add_rows(package / "utils.py", REMAPPING)
    add_rows(package / "prompt_utils.py", FORMATS)
    add_rows(package / "prompt_utils.py", SINGLE_IMAGE)
    text = PYPROJECT.format(version=version("mlx-vlm")) + PACKAGE_DATA
    (root / "pyproject.toml").write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def python(source, tmp_path_factory) -> Path:
    """Python of an environment with that mlx-vlm and without this package."""
    folder = tmp_path_factory.mktemp("lifted")
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    return light_environment(folder / "venv", wheel)


def ask(python: Path, folder: Path, question: str, checkpoint: Path = CHECKPOINT, **kwargs):
    """``python -m mlx_vlm.generate`` about the demo picture, away from the source tree."""
    options = ["--image", DEMO, "--prompt", question, "--max-tokens", 32, "--temperature", 0]
    return run_module(
        *("mlx_vlm.generate", "--model", checkpoint, *options),
        python=str(python),
        cwd=folder,
        **kwargs,
    )


def test_stock_mlx_vlm_answers_from_the_lifted_source(source, tmp_path):
    """The source tree before anything is built from it; this package is switched off."""
    question, answer = QUESTIONS[0]
    variables = {"PYTHONPATH": str(source), "MLX_VLM_MOXIN_DISABLE": "1"}
    result = ask(Path(sys.executable), tmp_path, question, env=variables)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == answer


def output_of(python: Path, code: str, folder: Path) -> str:
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.slow
def test_the_environment_has_the_lifted_model_and_not_this_package(python, tmp_path):
    code = "import mlx_vlm.models.moxin as m; print(m.__file__)"
    assert str(python.parents[1]) in output_of(python, code, tmp_path)
    code = "from importlib.util import find_spec; print(find_spec('mlx_vlm_moxin'))"
    assert output_of(python, code, tmp_path) == "None"


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [True, False], ids=["with cuda", "without cuda"])
def test_stock_mlx_vlm_answers_about_a_picture(python, tmp_path, kernels):
    code = "import mlx_vlm.models.moxin as m; print(m.__file__)"
    model = Path(output_of(python, code, tmp_path)).parent
    sources = {file.name for file in (MODEL_FOLDER / "cuda" / "kernels").iterdir()}
    if kernels:
        assert {file.name for file in (model / "cuda" / "kernels").iterdir()} == sources
    else:
        shutil.rmtree(model / "cuda")
        text = (model / "__init__.py").read_text(encoding="utf-8")
        (model / "__init__.py").write_text(text.replace(f"\n{ATTACH}", ""), encoding="utf-8")
    question, answer = QUESTIONS[0]
    result = ask(python, tmp_path, question)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == answer


@pytest.mark.slow
def test_a_checkpoint_that_is_cut_short_is_refused_in_a_line(python, tmp_path):
    checkpoint = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    file = checkpoint / "model.safetensors"
    weights = mx.load(str(file))
    kept = {name: value for name, value in weights.items() if ".layers." not in name}
    mx.save_safetensors(str(file), kept)
    result = ask(python, tmp_path, "What?", checkpoint)
    assert result.returncode == 1
    line = result.stderr.strip().splitlines()[-1]
    assert re.search(r"ValueError: This checkpoint does not fit .* tensors missing \(", line)
    assert len(line) < 600
