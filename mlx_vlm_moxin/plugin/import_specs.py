"""Import specs for the model package, created when mlx-vlm first imports it."""

import importlib
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from mlx_vlm_moxin import ALIASES
from mlx_vlm_moxin.plugin import replacements, upstream

MODEL_DIR = Path(__file__).parents[1] / "moxin"


class _ModelLoader(SourceFileLoader):
    """Loads the model package, then makes mlx-vlm ready for it."""

    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except ImportError as error:
            raise replacements.cannot_load("mlx-vlm", error) from error
        # It uses mlx_vlm_moxin.checkpoints, which imports the model first.
        importlib.import_module("mlx_vlm_moxin.plugin.command_errors").install()
        replacements.apply(upstream.MODEL)
        # The model works without its folder of kernels.
        if find_spec(f"{module.__name__}.cuda") is not None:
            importlib.import_module(f"{module.__name__}.cuda").attach()


class _AliasLoader:
    """Binds an alias to the module object it names."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import system returns the entry of sys.modules after this call. Returning
        # the package from create_module would overwrite its __spec__ instead.
        try:
            sys.modules[module.__name__] = importlib.import_module(ALIASES[module.__name__])
        except ImportError as error:
            host = module.__name__.partition(".")[0].replace("_", "-")
            raise replacements.cannot_load(host, error) from error


def model_spec(fullname: str) -> ModuleSpec:
    """The spec of ``mlx_vlm.models.moxin`` or of one of ``mlx_vlm_moxin.ALIASES``."""
    if fullname in ALIASES:
        return ModuleSpec(fullname, _AliasLoader(), origin=ALIASES[fullname])
    source = str(MODEL_DIR / "__init__.py")
    return spec_from_file_location(
        fullname,
        source,
        loader=_ModelLoader(fullname, source),
        submodule_search_locations=[str(MODEL_DIR)],
    )
