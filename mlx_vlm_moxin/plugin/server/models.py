"""The model for a request: the served model stays until another one is loaded.

mlx-vlm's server unloads its model before it looks for the one that a request names, so that a
misspelt name would end all running requests. It also loads on the event loop, which blocks all
answers meanwhile.
"""

import asyncio
import functools
import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from threading import RLock, Thread
from typing import Any

import mlx.core as mx
from fastapi import HTTPException
from mlx_vlm import server
from mlx_vlm.server.runtime import ModelCacheRegistry, runtime
from mlx_vlm.utils import get_model_path, load_config

from mlx_vlm_moxin.plugin.server.client import is_in_use
from mlx_vlm_moxin.plugin.server.errors import client_error, sentence, serves_moxin
from mlx_vlm_moxin.plugin.server_settings import ServerSettings

_KIND = "text_generation"
_LANGUAGE_MODEL_KINDS = ("auto", _KIND)
_DRAIN_INTERVAL_S = 0.1

_loader = ThreadPoolExecutor(1, "model-loading")
_switch_lock = RLock()
_is_loading: ContextVar[bool] = ContextVar("mlx_vlm_moxin_loading", default=False)


class _Registry(ModelCacheRegistry):
    """mlx-vlm's registry; code that loads a language model sees no loaded one in it."""

    def for_kind(self, kind: str | None = None) -> dict:
        return {} if _is_loading.get() and self._kind(kind) == _KIND else super().for_kind(kind)


def check_model(name: str, adapter: Any) -> None:
    """Find a model and an adapter; from a Hub repository, only the small files are downloaded.

    Raises:
        HTTPException: 404, naming what was not found and the loaded model.
    """
    loaded = runtime.model_cache.get("model_path")
    if ServerSettings.from_environment().pin_model:
        raise HTTPException(404, f"This server serves {loaded!r} only, without other adapters")
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
        original: the function, called to load a model while another one is served.
    """

    @functools.wraps(original)
    def get_cached_model(
        model_path: str, adapter_path: Any = server._INHERIT_ADAPTER, *, model_kind: str = "auto"
    ) -> Any:
        arguments = (model_path, adapter_path)
        if not serves_moxin():
            return original(*arguments, model_kind=model_kind)
        if model_kind not in _LANGUAGE_MODEL_KINDS:
            if ServerSettings.from_environment().pin_model:
                check_model(*arguments)
            return original(*arguments, model_kind=model_kind)
        with _switch_lock:
            if _is_served(*arguments):
                return original(*arguments, model_kind=model_kind)
            loaded = runtime.model_cache.for_kind(_KIND)
            if model_path != loaded["model_path"] or isinstance(adapter_path, str):
                check_model(*arguments)
            return _switch(functools.partial(original, *arguments, model_kind=model_kind))

    return get_cached_model


def _is_served(model_path: str, adapter_path: Any) -> bool:
    """Whether mlx-vlm would return the loaded model, according to the key that it compares."""
    key = runtime.model_cache.for_kind(_KIND).get("cache_key")
    if adapter_path is server._INHERIT_ADAPTER:
        adapter_path = key[1] if key and key[0] == model_path else None
    fingerprint = runtime.config.fingerprint(kinds={_KIND})
    return key == (model_path, adapter_path, _KIND, fingerprint)


def _switch(load: Callable[[], Any]) -> Any:
    """Load a model while the other one is served, and unload that one afterwards."""
    registry = runtime.model_cache
    if type(registry) is ModelCacheRegistry:
        registry.__class__ = _Registry
    before, apc_manager = registry.for_kind(_KIND), runtime.apc_manager
    token = _is_loading.set(True)
    try:
        loaded = load()
    except BaseException:
        runtime.apc_manager = apc_manager
        raise
    finally:
        _is_loading.reset(token)
    Thread(target=_retire, args=(before,), daemon=True).start()
    return loaded


def _retire(cache: dict[str, Any]) -> None:
    """Free a model once the requests that use it are answered."""
    generator = cache["response_generator"]
    while is_in_use(generator):
        time.sleep(_DRAIN_INTERVAL_S)
    generator.stop_and_join()
    for name in ("apc_manager", "vision_cache"):
        if cache.get(name) is not None:
            cache[name].clear()
    cache.clear()
    gc.collect()
    mx.clear_cache()


async def load_for(request: dict[str, Any]) -> None:
    """Load the model that ``request`` names in a thread, unless it is the served one.

    Raises:
        HTTPException: with the reason if it cannot be loaded.
    """
    model, adapter = request.get("model"), request.get("adapter_path", server._INHERIT_ADAPTER)
    is_adapter = adapter is server._INHERIT_ADAPTER or isinstance(adapter, str)
    if not isinstance(model, str) or not is_adapter or _is_served(model, adapter):
        return
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(_loader, server.get_cached_model, model, adapter)
    except HTTPException:
        raise
    except Exception as error:
        found = client_error(error)
        status, reason = (400, sentence(found)) if found else (500, sentence(error))
        raise HTTPException(status, f"Failed to load model: {reason}") from error
