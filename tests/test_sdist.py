"""The source distribution contains what its README names, and searchable metadata."""

import email
import email.message
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from set_address import address

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
# Files that `make demo`, `make test`, `make docs` and a build from the distribution read.
NEEDED = [
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "conversion/__main__.py",
    "mkdocs.yml",
    "mlx_vlm_moxin/activation/mlx_vlm_moxin_register.pth",
    "mlx_vlm_moxin/activation/mlx_vlm_moxin_register.start",
    "mlx_vlm_moxin/py.typed",
    "notebooks/ask_convert_compare.ipynb",
    "pyproject.toml",
    "requirements.txt",
    "tests/moxin_tiny/checkpoint/config.json",
    "tests/test_sdist.py",
]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> tarfile.TarFile:
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (file,) = folder.iterdir()
    with tarfile.open(file) as archive:
        yield archive


@pytest.fixture(scope="module")
def names(sdist) -> set[str]:
    return {name.partition("/")[2] for name in sdist.getnames()}


@pytest.fixture(scope="module")
def metadata(sdist) -> email.message.Message:
    (name,) = [name for name in sdist.getnames() if name.endswith("/PKG-INFO")]
    return email.message_from_bytes(sdist.extractfile(name).read())


@pytest.mark.parametrize("name", [*NEEDED, *PAGES])
def test_what_the_readme_needs_is_in_it(names, name):
    assert name in names


@pytest.mark.parametrize("page", PAGES)
def test_links_of_its_pages_lead_to_files_in_it(names, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        target = (ROOT / page).parent / link
        if not re.match(r"[a-z]+:", link) and target.exists():
            assert str(target.resolve().relative_to(ROOT)) in names, link


def test_nothing_that_a_build_or_a_run_leaves_is_in_it(names):
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"__pycache__", ".venv", "site", "dist", ".pytest_cache", ".hypothesis"}


def test_classifiers_name_each_version_of_python(metadata):
    versions = re.findall(r"Python :: (3\.\d+)$", "\n".join(metadata.get_all("Classifier")), re.M)
    assert versions == ["3.10", "3.11", "3.12", "3.13"]
    assert metadata["Requires-Python"] == f">={versions[0]}"


def test_a_search_for_any_member_of_the_family_finds_it(metadata):
    found = f"{metadata['Summary']} {metadata['Keywords']}".lower()
    for word in ("moxin", "prismatic", "openvla", "mlx-vlm", "vision-language-action"):
        assert word in found


def test_the_repositorys_address_is_the_one_that_the_maintainers_set(metadata):
    urls = dict(entry.split(", ") for entry in metadata.get_all("Project-URL"))
    assert urls.get("Repository") == address(ROOT)
