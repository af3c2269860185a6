"""Imports within the package go down only, and nowhere in a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mlx_vlm_moxin
from mlx_vlm_moxin.plugin.upstream import UPSTREAM

PACKAGE = Path(mlx_vlm_moxin.__file__).parent
# From the lowest up. A folder imports itself, lower floors, and others on its floor.
FLOORS = (
    {"moxin"},
    {"checkpoints"},
    {"actions", "bench", "conversion", "doctor", "evals", "library", "plugin"},
    {"commands"},
)
# The model folder under the name that it is imported with.
MODEL = "mlx_vlm.models.moxin"
Graph = dict[str, set[str]]


def module_name(file: Path) -> str:
    """Dotted name below the package: ``moxin.config``, or ``plugin`` for its __init__."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(file: Path) -> Iterator[str]:
    """Absolute dotted names of everything that a file imports: modules, or names in them."""
    package = ["mlx_vlm_moxin", *file.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def read_imports() -> Graph:
    """Each module of the package with the modules of the package that it imports."""
    files = {module_name(file): file for file in PACKAGE.rglob("*.py")}
    graph: Graph = {name: set() for name in files}
    for name, file in files.items():
        for imported in imported_names(file):
            for prefix, place in ((MODEL, "moxin"), ("mlx_vlm_moxin", "")):
                if imported == prefix or imported.startswith(prefix + "."):
                    target = (place + imported[len(prefix) :]).strip(".")
                    # A name in a module: the module.
                    target = target if target in files else target.rpartition(".")[0]
                    if target in files and target != name:
                        graph[name].add(target)
    # A package's __init__ is imported with each of its modules, so only its own imports count.
    # The root one holds the version and the finder, and imports nothing.
    return {name: targets - {""} for name, targets in graph.items() if name}


@pytest.fixture(scope="module")
def graph() -> Graph:
    return read_imports()


def folder(module: str) -> str:
    first = module.partition(".")[0]
    return first if (PACKAGE / first).is_dir() else "commands"


def floor(name: str) -> int:
    (number,) = [i for i, folders in enumerate(FLOORS) if name in folders]
    return number


def assert_no_circle(graph: Graph) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


def test_the_imports_are_found(graph):
    assert "moxin.config" in graph["moxin.moxin"]
    assert "moxin.moxin" in graph["library.save"] | graph["checkpoints.skeleton"]
    assert "checkpoints.messages" in graph["fuse"]
    assert "plugin.upstream" in graph["__main__"]


def test_every_folder_has_its_floor():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert {*folders, "commands"} == set().union(*FLOORS)


def test_no_import_goes_up(graph):
    up = [
        f"{module} -> {target}"
        for module, targets in graph.items()
        for target in targets
        if floor(folder(target)) > floor(folder(module))
    ]
    assert not up


def test_no_modules_import_each_other_in_a_circle(graph):
    assert_no_circle(graph)


def test_no_folders_import_each_other_in_a_circle(graph):
    folders: Graph = {}
    for module, targets in graph.items():
        folders.setdefault(folder(module), set()).update(map(folder, targets))
    assert_no_circle({name: targets - {name} for name, targets in folders.items()})


def test_the_model_folder_imports_nothing_of_this_package_and_names_itself_relatively():
    for file in (PACKAGE / "moxin").rglob("*.py"):
        absolute = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        modules = {
            name
            for node in absolute
            if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0)
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else [])
            + [alias.name for alias in node.names]
        }
        assert not {name for name in modules if name.split(".")[0] in ("mlx_vlm_moxin", "mlx_vlm")}


def test_the_model_folder_holds_python_files_and_kernels_alone():
    kernels = PACKAGE / "moxin" / "cuda" / "kernels"
    for file in (PACKAGE / "moxin").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert file.suffix == ".py" or file.parent == kernels, file


def test_the_model_works_without_the_kernels_folder(graph):
    users = {module for module, targets in graph.items() for t in targets if "moxin.cuda" in t}
    assert not [name for name in users if name.startswith("moxin.") and ".cuda" not in name]


def test_folders_that_the_replacements_use_import_the_model_first(graph):
    makers = {f"plugin.{row.make.partition(':')[0]}" for row in UPSTREAM if row.make}
    found, todo = set(), [*makers, "plugin.command_errors"]
    while todo:
        module = todo.pop()
        new = graph[module] - found
        found |= new
        todo += new
    used = {folder(module) for module in found} - {"moxin", "plugin"}
    assert used >= {"checkpoints", "library"}
    for name in used:
        tree = ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert [alias.name for alias in imports[0].names] == [MODEL], name
