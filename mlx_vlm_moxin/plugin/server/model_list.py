"""``GET /v1/models/{id}``, which clients request before they use a model."""

from typing import Any

from fastapi import Depends, FastAPI, HTTPException
from mlx_vlm.server import _require_management_api_key, models_endpoint


def model_info(model_id: str) -> dict[str, Any]:
    """A model's entry in the list of ``GET /v1/models``.

    Raises:
        HTTPException: 404 if the list does not contain it.
    """
    for model in models_endpoint()["data"]:
        # A path begins with a slash, which clients and proxies may omit.
        if model["id"].lstrip("/") == model_id.lstrip("/"):
            return model
    raise HTTPException(404, f"No model {model_id!r} on this server; GET /v1/models lists them")


def add_model_route(app: FastAPI) -> None:
    """Add the route to ``app``, with and without ``/v1``."""
    dependencies = [Depends(_require_management_api_key)]
    for path in ("/models/{model_id:path}", "/v1/models/{model_id:path}"):
        app.get(path, dependencies=dependencies, include_in_schema=False)(model_info)
