"""Which model a request gets: the loaded one is not given up for one that does not exist.

mlx-vlm's server unloads its model before it looks for the one that a request names, so
that a misspelt name would take the model, and requests under way, from everybody else.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from mlx_vlm import server
from mlx_vlm.server.runtime import runtime
from mlx_vlm.utils import get_model_path, load_config

from mlx_vlm_moxin.plugin.server.errors import serves_moxin

_LANGUAGE_MODEL_KINDS = ("auto", "text_generation")


def check_model(name: str, adapter: Any) -> None:
    """Look for a model and an adapter; of a Hub repository, fetch the small files only.

    Raises:
        HTTPException: 404, naming what was not found and what this server has loaded.
    """
    loaded = runtime.model_cache.get("model_path")
    try:
        load_config(get_model_path(name, allow_patterns=["*.json"]))
    except (OSError, ValueError) as error:
        detail = (
            f"No model {name!r} was found on this machine or, as far as it can be reached, on the "
            f"Hugging Face Hub; this server has loaded {loaded!r}"
        )
        raise HTTPException(404, detail) from error
    if isinstance(adapter, str) and not Path(adapter).is_dir():
        raise HTTPException(404, f"No adapter directory {adapter!r} on the server")


def get_cached_model(original: Callable) -> Callable:
    """``mlx_vlm.server.get_cached_model``, which every endpoint calls.

    Args:
        original: the function, called once the model is known to exist.
    """

    @functools.wraps(original)
    def get_cached_model(
        model_path: str, adapter_path: Any = server._INHERIT_ADAPTER, *, model_kind: str = "auto"
    ) -> Any:
        if model_kind in _LANGUAGE_MODEL_KINDS and serves_moxin():
            loaded = runtime.model_cache.get("model_path")
            if model_path != loaded or isinstance(adapter_path, str):
                check_model(model_path, adapter_path)
        return original(model_path, adapter_path, model_kind=model_kind)

    return get_cached_model
