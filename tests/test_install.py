"""Installed by pip into an environment of its own, the plugin is found by stock mlx-vlm."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support import HF_CHECKPOINT, image_path, run_module

ROOT = Path(__file__).parents[1]
START_UP_FILES = {"mlx_vlm_moxin_register.pth", "mlx_vlm_moxin_register.start"}


def pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr


def environment(path: Path) -> Path:
    """The Python of a new, empty virtual environment."""
    subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
    return path / "bin" / "python"


def site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    output = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return Path(output.stdout.strip())


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
    pip(Path(sys.executable), "wheel", "--no-deps", "-q", "-w", path, ROOT)
    (file,) = path.glob("*.whl")
    return file


def test_the_wheel_runs_in_a_fresh_environment(wheel, tmp_path):
    python = environment(tmp_path / "venv")
    extra = "[cpu]" if sys.platform == "linux" else ""
    pip(python, "install", "-q", "-c", ROOT / "requirements.txt", f"{wheel}{extra}")
    assert {path.name for path in site_packages(python).iterdir()} >= START_UP_FILES
    assert_answers(python, tmp_path)
    pip(python, "uninstall", "-q", "-y", "mlx-vlm-moxin")
    assert not START_UP_FILES & {path.name for path in site_packages(python).iterdir()}


def test_an_editable_install_runs(tmp_path):
    python = environment(tmp_path / "venv")
    # Dependencies come from this environment; a path line does not read its .pth files.
    shared = sysconfig.get_path("purelib")
    (site_packages(python) / "dependencies.pth").write_text(shared + "\n", encoding="utf-8")
    pip(python, "install", "-q", "--no-deps", "-e", ROOT)
    assert {path.name for path in site_packages(python).iterdir()} >= START_UP_FILES
    assert_answers(python, tmp_path)


def test_without_the_start_up_file_mlx_vlm_does_not_know_the_model(tmp_path):
    python = environment(tmp_path / "venv")
    shared = sysconfig.get_path("purelib")
    (site_packages(python) / "dependencies.pth").write_text(shared + "\n", encoding="utf-8")
    result = run_module("mlx_vlm.generate", "--model", HF_CHECKPOINT, python=str(python))
    assert result.returncode == 1
    assert "prismatic not supported" in result.stderr
