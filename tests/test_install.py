"""Stock mlx-vlm finds the plugin that pip installed into a separate environment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from environments import (
    light_environment,
    make_environment,
    pip,
    share_dependencies,
    site_packages,
)
from support import HF_CHECKPOINT, image_path, run_module

ROOT = Path(__file__).parents[1]
START_UP_FILES = {"mlx_vlm_moxin_register.pth", "mlx_vlm_moxin_register.start"}


def assert_answers(python: Path, tmp_path: Path) -> None:
    """Stock ``python -m mlx_vlm.generate`` answers, away from the source tree."""
    arguments = ["--model", HF_CHECKPOINT, "--image", image_path("photo"), "--max-tokens", "4"]
    result = run_module(
        "mlx_vlm.generate", *arguments, "--prompt", "What?", python=str(python), cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "-w", path, ROOT)
    (file,) = path.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def light_python(wheel, tmp_path_factory) -> Path:
    """Python of an environment with the wheel and the packages of this environment."""
    return light_environment(tmp_path_factory.mktemp("light") / "venv", wheel)


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, cwd=folder, timeout=600
    )


@pytest.mark.slow
def test_the_wheel_runs_in_a_fresh_environment(wheel, tmp_path):
    python = make_environment(tmp_path / "venv")
    extra = "[cpu]" if sys.platform == "linux" else ""
    pip("install", "-c", ROOT / "requirements.txt", f"{wheel}{extra}", python=python)
    assert {path.name for path in site_packages(python).iterdir()} >= START_UP_FILES
    assert_answers(python, tmp_path)
    pip("uninstall", "-y", "mlx-vlm-moxin", python=python)
    assert not START_UP_FILES & {path.name for path in site_packages(python).iterdir()}


@pytest.mark.slow
def test_an_editable_install_runs(tmp_path):
    python = make_environment(tmp_path / "venv")
    share_dependencies(python)
    pip("install", "--no-deps", "-e", ROOT, python=python)
    assert {path.name for path in site_packages(python).iterdir()} >= START_UP_FILES
    assert_answers(python, tmp_path)


@pytest.mark.slow
def test_the_wheel_runs_with_the_packages_of_this_environment(light_python, tmp_path):
    assert {path.name for path in site_packages(light_python).iterdir()} >= START_UP_FILES
    assert_answers(light_python, tmp_path)


def test_without_the_start_up_file_mlx_vlm_does_not_know_the_model(tmp_path):
    python = make_environment(tmp_path / "venv", "--without-pip")
    share_dependencies(python)
    result = run_module("mlx_vlm.generate", "--model", HF_CHECKPOINT, python=str(python))
    assert result.returncode == 1
    assert "prismatic not supported" in result.stderr


def test_one_package_is_installed(light_python, tmp_path):
    installed = {path.name for path in site_packages(light_python).iterdir() if path.is_dir()}
    (metadata,) = [name for name in installed if name.endswith(".dist-info")]
    assert installed - {metadata} == {"mlx_vlm_moxin"}
    result = run(light_python, tmp_path, "-c", "import conversion")
    assert "ModuleNotFoundError: No module named 'conversion'" in result.stderr


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.slow
def test_names_in_the_working_directory_do_not_get_in_the_way(light_python, tmp_path, kind):
    names = ("conversion", "library", "plugin", "checkpoints", "moxin", "bench", "evals")
    for name in names:
        if kind == "folder":
            (tmp_path / name).mkdir()
        file = tmp_path / name / "__init__.py" if kind == "folder" else tmp_path / f"{name}.py"
        file.write_text("raise RuntimeError(__file__)\n", encoding="utf-8")
    result = run(light_python, tmp_path, "-m", "mlx_vlm_moxin", "convert", "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: python -m mlx_vlm_moxin convert ")
    code = "from mlx_vlm_moxin import load; print(load.__module__)"
    result = run(light_python, tmp_path, "-c", code)
    assert result.stdout.strip() == "mlx_vlm_moxin.library.load", result.stderr


def test_the_console_script_is_the_command(light_python, tmp_path):
    script = light_python.parent / "mlx_vlm_moxin.convert"
    result = run(light_python, tmp_path, str(script), "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: python -m mlx_vlm_moxin convert ")


def test_conversion_starts_from_a_clone(tmp_path):
    result = run(Path(sys.executable), ROOT, "-m", "conversion", "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: python -m mlx_vlm_moxin convert ")


@pytest.mark.slow
def test_the_doctor_of_an_installed_package_asks_the_model_that_came_along(light_python, tmp_path):
    result = run(light_python, tmp_path, "-m", "mlx_vlm_moxin", "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["self-test"]["status"] == "ok", checks["self-test"]
    assert checks["start-up file"]["values"]["active"]
    assert checks["start-up file"]["values"]["files"] == [
        str(site_packages(light_python) / "mlx_vlm_moxin_register.pth"),
        str(site_packages(light_python) / "mlx_vlm_moxin_register.start"),
    ]
