"""Checks of the installation: versions, MLX's backend, the start-up file, the model package."""

import importlib
import os
import platform
import site
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.specifiers import SpecifierSet

import mlx_vlm_moxin
from mlx_vlm_moxin.doctor.check import FAILED, OK, WARNING, Check
from mlx_vlm_moxin.plugin import upstream

START_UP_FILES = ("mlx_vlm_moxin_register.pth", "mlx_vlm_moxin_register.start")
# Distributions that contain MLX's backend; all but the first share files with each other.
BACKENDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
OPTIONAL = ("mlx-lm",)
_IS_REGISTERED = "import sys; sys.exit('mlx_vlm_moxin' not in sys.modules)"


def installed(distribution: str) -> str | None:
    """Version of a distribution; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def check_version(distribution: str, tested: str) -> Check:
    """Compare the version of a package with the range that the tests run with."""
    found = installed(distribution)
    values = {"version": found, "tested": tested}
    if found is None:
        is_optional = distribution in OPTIONAL
        status = OK if is_optional else FAILED
        advice = "" if is_optional else f'pip install "{distribution}{tested}"'
        return Check(distribution, status, "not installed", advice, values)
    text = f"{found} (tested: {tested})"
    if SpecifierSet(tested).contains(found, prereleases=True):
        return Check(distribution, OK, text, values=values)
    return Check(distribution, FAILED, text, f'pip install "{distribution}{tested}"', values)


def versions() -> list[Check]:
    """Check the versions of this package, Python, and the packages that it modifies."""
    system = f"Python {platform.python_version()}, {platform.platform()}"
    values = {"version": mlx_vlm_moxin.__version__, "python": platform.python_version()}
    found = f"{mlx_vlm_moxin.__version__}, {system}"
    ranges = {
        "mlx-vlm": upstream.MLX_VLM,
        "transformers": upstream.TRANSFORMERS,
        "mlx-lm": upstream.MLX_LM,
    }
    return [
        Check("mlx-vlm-moxin", OK, found, values=values),
        *(check_version(name, tested) for name, tested in ranges.items()),
    ]


def backend() -> Check:
    """Check MLX and its default device."""
    packages = [name for name in BACKENDS if installed(name) is not None]
    values = {"version": installed("mlx"), "packages": packages}
    extra = 'pip install "mlx[cpu]", or "mlx[cuda13]" with an NVIDIA GPU'
    try:
        import mlx.core as mx
    except ImportError as error:
        return Check("mlx", FAILED, f"cannot be imported ({error})", extra, values)
    from mlx_vlm_moxin.bench.machine import device_name

    values["device"] = device_name()
    found = f"{values['version']} on {values['device']}"
    if len([name for name in packages if name != "mlx-metal"]) > 1:
        advice = f"keep one of {', '.join(packages)}: they share files"
        return Check("mlx", FAILED, found, advice, values)
    if mx.default_device() == mx.cpu and Path("/proc/driver/nvidia").exists():
        advice = 'pip uninstall mlx-cpu, then pip install "mlx[cuda13]", to use the NVIDIA GPU'
        return Check("mlx", WARNING, found, advice, values)
    return Check("mlx", OK, found, values=values)


def start_up() -> Check:
    """Check that every Python process of this environment knows the model types."""
    files = [
        str(path)
        for folder in (*site.getsitepackages(), site.getusersitepackages())
        for name in START_UP_FILES
        if (path := Path(folder) / name).is_file()
    ]
    process = subprocess.run([sys.executable, "-c", _IS_REGISTERED], capture_output=True)
    is_active = process.returncode == 0
    values = {"files": files, "active": is_active}
    if os.environ.get(mlx_vlm_moxin.SWITCH, "0") not in ("", "0"):
        advice = f"unset {mlx_vlm_moxin.SWITCH}"
        return Check("start-up file", FAILED, "switched off by the environment", advice, values)
    if is_active:
        found = f"active ({files[0] if files else 'imported by another start-up file'})"
        advice = f"to switch it off: {mlx_vlm_moxin.SWITCH}=1, or delete the file"
        return Check("start-up file", OK, found, advice, values)
    advice = (
        "run pip install . in the clone with this environment's pip, or use python -m "
        "mlx_vlm_moxin generate (chat, server, train) instead of mlx_vlm's"
    )
    found = "not active: stock mlx-vlm says 'Model type moxin not supported'"
    return Check("start-up file", FAILED, found, advice, values)


def model_package() -> Check:
    """Check that mlx-vlm loads the model package, and that the replaced names exist."""
    importlib.import_module("mlx_vlm.models.moxin")
    found = f"loaded, {len(upstream.UPSTREAM)} names of other packages are as expected"
    return Check("model package", OK, found)
