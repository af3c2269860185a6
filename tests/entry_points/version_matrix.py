"""The core tests with the oldest and the newest allowed mlx-vlm, in temporary environments.

    python tests/entry_points/version_matrix.py [VERSION ...]

Prints a table; the exit status is 1 if a test failed or did not run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SHOWN = ("mlx-vlm", "mlx", "transformers", "pillow")
# Tests of what depends on mlx-vlm, mlx-lm and transformers.
CORE = (
    "moxin",
    "plugin",
    "library",
    "actions/test_training.py",
    "conversion/test_convert.py",
    "evals/test_answering.py",
    "entry_points/test_generate_options.py",
    "entry_points/test_train.py",
    "test_lift.py",
    "test_main_job.py",
)
OUTCOMES = ("passed", "failed", "skipped")


def oldest() -> str:
    """The lowest mlx-vlm that this package's metadata allows."""
    needed = map(Requirement, requires("mlx-vlm-moxin"))
    # Requirements with a marker belong to extras.
    (requirement,) = (r for r in needed if r.name == "mlx-vlm" and r.marker is None)
    (specifier,) = (s for s in requirement.specifier if s.operator == ">=")
    return specifier.version


def make_environment(folder: Path, version: str) -> Path:
    """Python of a new environment with this package on one mlx-vlm.

    Args:
        version: of mlx-vlm, or ``"newest"``.
    """
    python = folder / "bin" / "python"
    extras = "test,cpu" if sys.platform == "linux" else "test"
    packages = [f"{ROOT}[{extras}]", "mlx-vlm" if version == "newest" else f"mlx-vlm=={version}"]
    if uv := shutil.which("uv"):
        subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(folder)], check=True)
        install = [uv, "pip", "install", "-q", "-p", str(python)]
    else:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "-q"]
    subprocess.run([*install, *packages], check=True)
    return python


def versions(python: Path) -> list[str]:
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    output = subprocess.run(
        [str(python), "-c", code, *SHOWN], capture_output=True, text=True, check=True
    )
    return output.stdout.split()


def run_tests(python: Path, report: Path) -> dict[str, int]:
    """Counts of the core tests' outcomes in that environment."""
    files = [str(ROOT / "tests" / name) for name in CORE]
    subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        + ["-n", "auto", "--dist", "loadfile", *files],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if not report.is_file():
        return dict.fromkeys(OUTCOMES, 0)
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed, skipped = count["failures"] + count["errors"], count["skipped"]
    return dict(zip(OUTCOMES, (count["tests"] - failed - skipped, failed, skipped)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=[oldest(), "newest"], metavar="VERSION")
    args = parser.parse_args()
    lines = []
    whole = True
    for version in args.versions:
        with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
            python = make_environment(Path(folder) / "venv", version)
            counts = run_tests(python, Path(folder) / "report.xml")
            lines.append([*versions(python), *map(str, counts.values())])
        whole = whole and counts["passed"] > 0 and counts["failed"] == 0
    header = [*SHOWN, *OUTCOMES]
    widths = [max(map(len, column)) for column in zip(header, *lines)]
    for line in (header, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
