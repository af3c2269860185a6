"""docs/when-it-does-not-work.md: the code can print every message on the page."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import mlx.core
import pytest

import mlx_vlm_moxin

PAGE = (Path(__file__).parents[1] / "docs" / "when-it-does-not-work.md").read_text("utf-8")
TEXTS = re.findall(r"^> (.+)$", PAGE, re.MULTILINE)
PACKAGES = ("mlx_vlm_moxin", "mlx_vlm", "mlx_lm", "huggingface_hub")
# Messages from compiled code: the system's loader, and MLX.
LOADER = "libmlx.so: cannot open shared object file"


def _strings() -> str:
    """All string constants of the packages, without other models."""
    found = []
    for package in PACKAGES:
        folder = Path(importlib.util.find_spec(package).origin).parent
        for file in folder.rglob("*.py"):
            if package in ("mlx_vlm", "mlx_lm") and "models" in file.parts:
                continue
            tree = ast.parse(file.read_text(encoding="utf-8"))
            found += [
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
    return "\n".join(found)


@pytest.fixture(scope="module")
def strings() -> str:
    return _strings()


@functools.cache
def _library() -> bytes:
    """MLX's compiled code, wherever this system has it."""
    folder = Path(mlx.core.__file__).parent
    files = [*folder.rglob("libmlx.*"), Path(mlx.core.__file__)]
    return b"".join(file.read_bytes() for file in files)


@pytest.mark.parametrize("text", [text for text in TEXTS if text != LOADER])
def test_the_text_is_one_that_the_code_prints(text, strings):
    for part in filter(None, (part.strip(" .,;()") for part in text.split("…"))):
        assert part in strings or part.encode() in _library(), part


def test_the_page_is_about_this_package():
    assert len(TEXTS) > 20
    assert "python -m mlx_vlm_moxin doctor" in PAGE
    assert mlx_vlm_moxin.SWITCH in PAGE
