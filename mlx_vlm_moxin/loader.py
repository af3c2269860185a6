"""Import specs for the model package, made when mlx-vlm first asks for it."""

import importlib
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import PackageNotFoundError, version
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from mlx_vlm_moxin import ALIAS_MODULE, MODEL_MODULE, __version__

MODEL_DIR = Path(__file__).parent / "moxin"


def _installed(distribution: str) -> str:
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return f"{distribution} (not installed)"


class _ModelLoader(SourceFileLoader):
    """Loads the model package, then registers it in mlx-vlm's per-model tables."""

    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
            from mlx_vlm_moxin import cli_errors, tables

            tables.register()
            cli_errors.install()
        except ImportError as error:
            # mlx-vlm takes an ImportError that contains the model type (a file path is
            # enough) for "Model type moxin not supported" and hides the real cause.
            raise RuntimeError(
                f"mlx-vlm-moxin {__version__} cannot be loaded into "
                f"{_installed('mlx-vlm')}, {_installed('mlx')}, "
                f"{_installed('transformers')}: {error}"
            ) from error


class _AliasLoader:
    """Binds the alias name to the model package's own module object."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import system hands out what sys.modules holds after this call. Returning
        # the package from create_module would overwrite its __spec__ instead.
        sys.modules[module.__name__] = importlib.import_module(MODEL_MODULE)


def model_spec(fullname: str) -> ModuleSpec:
    """The spec of ``mlx_vlm.models.moxin`` or of its alias ``mlx_vlm.models.prismatic``."""
    if fullname == ALIAS_MODULE:
        return ModuleSpec(fullname, _AliasLoader(), origin=MODEL_MODULE)
    source = str(MODEL_DIR / "__init__.py")
    return spec_from_file_location(
        fullname,
        source,
        loader=_ModelLoader(fullname, source),
        submodule_search_locations=[str(MODEL_DIR)],
    )
