"""The table of replaced names: complete, applied in every order of imports, with clear errors."""

import ast
import importlib
import sys
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, ModuleType

import mlx_lm
import mlx_vlm
import pytest
from packaging.specifiers import SpecifierSet
from support import run_python

import mlx_vlm_moxin
from mlx_vlm_moxin.plugin import replacements
from mlx_vlm_moxin.plugin.upstream import MODEL, UPSTREAM, Replacement

PLUGIN = Path(mlx_vlm_moxin.__file__).parent / "plugin"
MODEL_ROWS = [row for row in UPSTREAM if row.when == MODEL]
SERVER_ROWS = [row for row in MODEL_ROWS if row.module.startswith("mlx_vlm.server")]


def row_id(row: Replacement) -> str:
    return f"{row.module}.{row.name}"


def owner_of(row: Replacement) -> tuple[object, str]:
    """The module or class that holds the row's name, and the name in it."""
    *path, name = row.name.split(".")
    owner = importlib.import_module(row.module)
    for part in path:
        owner = getattr(owner, part)
    return owner, name


def is_upstream(module: str | None) -> bool:
    return (module or "").split(".")[0] in ("mlx_vlm", "mlx_lm", "transformers") and not (
        module.startswith("mlx_vlm.models.moxin")
    )


def private_names(file: Path) -> set[str]:
    """Private names of mlx-vlm, mlx-lm and transformers that a file imports or reads."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules, found = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_upstream(node.module):
            for alias in node.names:
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if alias.name.startswith("_"):
                    found.add(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
            and node.attr.startswith("_")
            and not node.attr.endswith("__")
        ):
            found.add(f"{modules[node.value.id]}.{node.attr}")
    return found


def test_every_private_name_that_is_read_is_a_row():
    files = [file for file in PLUGIN.parent.rglob("*.py")]
    found = set().union(*map(private_names, files))
    assert found >= {"mlx_vlm.server._INHERIT_ADAPTER", "mlx_vlm.convert._apply_awq_calibration"}
    assert found <= {row_id(row) for row in UPSTREAM}


def test_every_private_method_that_is_overridden_is_a_row():
    names = set()
    for file in PLUGIN.rglob("*.py"):
        parts = file.relative_to(PLUGIN.parent).with_suffix("").parts
        module = importlib.import_module(".".join(["mlx_vlm_moxin", *parts]))
        for kind in vars(module).values():
            if not isinstance(kind, type) or kind.__module__ != module.__name__:
                continue
            for base in kind.__mro__[1:]:
                if is_upstream(base.__module__):
                    private = {name for name in vars(kind) if name.startswith("_")}
                    shared = {name for name in private & vars(base).keys() if name[:2] != "__"}
                    names |= {f"{base.__module__}.{base.__name__}.{name}" for name in shared}
    assert "mlx_vlm.server.generation.ResponseGenerator._make_sampler" in names
    assert names <= {row_id(row) for row in UPSTREAM}


# Copies of replaced names in mlx-vlm's modules, made when they are imported, that do no harm.
COPIES = {
    "mlx_vlm": "for programs; this package does not change what the name does for them",
    "mlx_vlm.server": "the same",
    "mlx_vlm.privacy_filter": "loads other models",
    "mlx_vlm.trainer.runner": "no module of mlx-vlm uses it",
    "mlx_vlm.speculative.drafters.mtp_split": "loads drafters",
}


def copied_names(host: ModuleType) -> set[tuple[str, str]]:
    """Replaced names that modules of ``host`` copy by ``from ... import`` when imported."""
    rows = {
        (row.module, row.name)
        for row in MODEL_ROWS
        if row.make is not None and isinstance(getattr(*owner_of(row)), FunctionType)
    }
    root, found = Path(next(iter(host.__path__))), set()
    for file in root.rglob("*.py"):
        parts = (host.__name__, *file.relative_to(root).with_suffix("").parts)
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                start = parts[: len(parts) - node.level] if node.level else ()
                source = ".".join([*start, *([node.module] if node.module else [])])
                found |= {(module, n.name) for n in node.names if (source, n.name) in rows}
    return found


@pytest.mark.slow
def test_no_module_works_with_a_copy_of_what_was_replaced():
    rows = {(row.module, row.name): row for row in UPSTREAM}
    copies = copied_names(mlx_vlm) | copied_names(mlx_lm)
    assert ("mlx_vlm.trainer.vlm.grpo.dataset", "_resolve_media") in copies
    for module, name in copies - rows.keys():
        value = getattr(importlib.import_module(module), name)
        is_changed_in_place = "_call" in (value.__kwdefaults__ or {})
        assert is_changed_in_place or module in COPIES, (module, name)


def test_no_row_is_there_twice():
    assert len({row_id(row) for row in UPSTREAM}) == len(UPSTREAM)


@pytest.mark.parametrize("row", UPSTREAM, ids=row_id)
def test_a_rows_replacement_exists_and_its_versions_can_be_read(row):
    if row.make is not None:
        module, _, function = row.make.partition(":")
        tree = ast.parse((PLUGIN / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert SpecifierSet(row.versions)
    assert row.why


FUNCTIONS = """
import importlib, sys
for module in sys.argv[1].split():
    importlib.import_module(module)
for place in sys.argv[2].split():
    module, _, name = place.partition(":")
    value = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    print(value.__code__.co_filename)
"""


@pytest.mark.parametrize(
    "modules",
    [
        "mlx_vlm.models.moxin mlx_vlm.server",
        "mlx_vlm.server mlx_vlm.models.moxin",
        "mlx_vlm.server.app mlx_vlm.models.prismatic",
        "mlx_vlm.models.prismatic mlx_vlm.server.openai",
    ],
)
def test_the_server_has_the_same_functions_in_every_order_of_imports(modules):
    objects = ("app", "traceback")
    rows = [row for row in SERVER_ROWS if row.make is not None and row.name not in objects]
    functions = {"asyncio": "asyncio.to_thread", "gc": "gc.collect"}
    places = " ".join(f"{row.module}:{functions.get(row.name, row.name)}" for row in rows)
    files = run_python(FUNCTIONS, modules, places, is_warm=True).splitlines()
    assert len(files) == len(rows)
    assert all(Path(file).is_relative_to(PLUGIN) for file in files), files


def test_python_dash_m_has_them_too():
    # runpy finds and runs a package's __main__ without the import statement.
    code = """
import runpy, sys
import mlx_vlm.models.moxin
sys.argv = ["server", "--help"]
try:
    runpy.run_module("mlx_vlm.server", run_name="__main__")
except SystemExit:
    pass
print(hasattr(sys.modules["mlx_vlm.server"].get_cached_model, "__wrapped__"))
"""
    assert run_python(code, is_warm=True).splitlines()[-1] == "True"


@pytest.mark.parametrize("first", ["moxin", "server"])
def test_the_server_answers_errors_in_every_order_of_imports(first):
    modules = ["mlx_vlm.models.moxin", "mlx_vlm.server"]
    code = f"""
import {", ".join(modules if first == "moxin" else modules[::-1])}
from starlette.exceptions import HTTPException
app, cached = mlx_vlm.server.app, mlx_vlm.server.get_cached_model
print(app.exception_handlers[HTTPException].__module__, hasattr(cached, "__wrapped__"))
"""
    assert run_python(code, is_warm=True).split() == ["mlx_vlm_moxin.plugin.server.errors", "True"]


@pytest.mark.parametrize("name", ["next_token", "preference"])
@pytest.mark.parametrize("first", ["moxin", "trainer"])
def test_the_trainers_snapshots_know_both_types_in_every_order_of_imports(name, first):
    modules = ["mlx_vlm.models.moxin", f"mlx_vlm.trainer.datasets.{name}"]
    code = f"""
import sys, {", ".join(modules if first == "moxin" else modules[::-1])}
print({{"moxin", "prismatic"}} <= sys.modules[{modules[1]!r}].NATIVE_PREPROCESS_MODELS)
"""
    assert run_python(code, is_warm=True).strip() == "True"


def test_looking_for_a_module_without_importing_it_loses_nothing():
    code = """
import importlib.util
import mlx_vlm.models.moxin
importlib.util.find_spec("mlx_vlm.server")
import mlx_vlm.server
print(hasattr(mlx_vlm.server.get_cached_model, "__wrapped__"), mlx_vlm.server.__spec__.origin)
"""
    found, origin = run_python(code, is_warm=True).split()
    assert found == "True"
    assert Path(origin).name == "__init__.py"


@pytest.mark.parametrize("row", UPSTREAM, ids=row_id)
def test_a_name_that_is_missing_is_one_line_and_nothing_is_replaced(row, monkeypatch):
    importlib.import_module(row.after or row.module)
    place = owner_of(row)
    monkeypatch.setattr(replacements, "_applied", set())
    monkeypatch.setattr(replacements, "UPSTREAM", (MODEL_ROWS[1], row))
    formats = {}
    monkeypatch.setattr("mlx_vlm.prompt_utils.MODEL_CONFIG", formats)
    monkeypatch.delattr(*place)
    if row.module == "mlx_vlm.server":
        # Its __getattr__ looks in the module app.
        monkeypatch.delattr(sys.modules["mlx_vlm.server.app"], row.name)
    with pytest.raises(RuntimeError) as caught:
        replacements.apply(row.when)
    line = str(caught.value)
    assert line.startswith(f"mlx-vlm-moxin {mlx_vlm_moxin.__version__} cannot be loaded into ")
    assert f"{row.distribution} {version(row.distribution)}" in line
    assert f"{row.module} has no {row.name}" in line
    assert "\n" not in line
    assert len(line) < 500
    assert not formats


@pytest.mark.parametrize(
    ("delete", "then"),
    [
        ("mlx_vlm.structured._apply_llguidance_mask", "mlx_vlm.models.moxin"),
        ("mlx_lm.utils._load_tokenizer", "mlx_lm.models.prismatic"),
    ],
)
def test_a_name_that_is_missing_ends_the_import_of_the_model(delete, then):
    code = f"""
import importlib
import {delete.rpartition(".")[0]}
del {delete}
try:
    importlib.import_module({then!r})
except RuntimeError as error:
    print(error)
"""
    message = run_python(code, is_warm=delete.startswith("mlx_vlm."))
    assert f"has no {delete.rpartition('.')[2]} (" in message


def test_a_name_that_a_later_import_lacks_ends_that_import():
    code = """
import mlx_vlm.models.moxin
from importlib.machinery import SourceFileLoader
class Without(SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        del module._parse_response_request
import sys
from importlib.machinery import PathFinder
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name == "mlx_vlm.server.openai" else None
        if spec is not None:
            spec.loader = Without(name, spec.origin)
        return spec
sys.meta_path.insert(0, Finder)
try:
    import mlx_vlm.server
except RuntimeError as error:
    print(error)
"""
    line = run_python(code, is_warm=True).strip()
    assert "mlx_vlm.server.openai has no _parse_response_request" in line
