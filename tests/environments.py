"""Virtual environments for tests of installed packages."""

import subprocess
import sys
from pathlib import Path


def pip(*arguments: str | Path, python: Path = Path(sys.executable)) -> None:
    """Run pip; it must succeed."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
    result = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=1200
    )
    assert result.returncode == 0, result.stderr


def make_environment(path: Path, *options: str) -> Path:
    """The Python of a new, empty virtual environment.

    Args:
        options: of ``python -m venv``, such as ``--without-pip``, which saves seconds.
    """
    subprocess.run([sys.executable, "-m", "venv", *options, str(path)], check=True)
    return path / "bin" / "python"


def site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    output = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return Path(output.stdout.strip())


def share_dependencies(python: Path) -> None:
    """Let an environment import this one's packages, with lower priority than its installed ones.

    This package stays out, whether it is installed here as a wheel or from its source tree, and
    so do all start-up files: a folder of links is on the path, and path lines read no such files.
    """
    shared = python.parents[1] / "shared"
    shared.mkdir()
    for folder in (Path(path) for path in sys.path if Path(path).name == "site-packages"):
        for entry in folder.iterdir():
            link = shared / entry.name
            if not entry.name.startswith("mlx_vlm_moxin") and not link.is_symlink():
                link.symlink_to(entry)
    (site_packages(python) / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")


def light_environment(path: Path, wheel: Path) -> Path:
    """The Python of an environment with one wheel and this environment's packages."""
    python = make_environment(path, "--without-pip")
    pip("--python", python, "install", "--no-deps", wheel)
    share_dependencies(python)
    return python
