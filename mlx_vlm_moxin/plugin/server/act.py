"""``POST /act``: the API of OpenVLA's and OpenVLA-OFT's servers, in mlx-vlm's server.

Both use json_numpy. OpenVLA: ``{"image", "instruction", "unnorm_key"}``, answered with an action;
OpenVLA-OFT: ``{"full_image", "...wrist...", "state", "instruction"}``, answered with a list of
actions. ``{"encoded": text}`` contains such a request as text, and is answered with text. Errors
are a 4xx with a sentence, instead of the string "error" of these servers.

Reference: vla-scripts/deploy.py of openvla/openvla and of moojink/openvla-oft.
"""

import json
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from mlx_vlm.server import _require_management_api_key
from mlx_vlm.server.runtime import runtime
from starlette.requests import ClientDisconnect

from mlx_vlm_moxin.actions import json_numpy
from mlx_vlm_moxin.actions.inputs import ActionInputs, action_config, prepare
from mlx_vlm_moxin.actions.policy import Prediction, infer
from mlx_vlm_moxin.actions.serving import defaults
from mlx_vlm_moxin.checkpoints.messages import one_line
from mlx_vlm_moxin.plugin.server.between_steps import StoppingError
from mlx_vlm_moxin.plugin.server.errors import serves_moxin
from mlx_vlm_moxin.plugin.server.generator import adopt
from mlx_vlm_moxin.plugin.server_settings import ServerSettings

# OpenVLA's name of the camera's picture, and OpenVLA-OFT's of the main camera's.
_MAIN_CAMERA = ("full_image", "image")
_OTHER_CAMERAS = "wrist"


def _refused(status: int, reason: str) -> HTTPException:
    return HTTPException(status, one_line(reason))


def _loaded() -> Any:
    """The running generator, with an action model loaded.

    Raises:
        HTTPException: 409, naming the loaded model.
    """
    generator = runtime.response_generator
    name = runtime.model_cache.get("model_path")
    if generator is None or name is None:
        raise _refused(409, "No model is loaded; start the server with --model")
    if not serves_moxin() or generator.model is None:
        raise _refused(409, f"The model that is loaded ({name}) gives no actions")
    try:
        action_config(generator.model)
    except ValueError as error:
        raise _refused(409, str(error)) from error
    adopt(generator)
    return generator


def _parse(body: bytes) -> tuple[dict[str, Any], bool]:
    """The request, and whether it was encoded as text."""
    try:
        payload = json_numpy.loads(body)
        is_encoded = isinstance(payload, dict) and [*payload] == ["encoded"]
        if is_encoded:
            payload = json_numpy.loads(payload["encoded"])
    except (TypeError, ValueError) as error:
        raise _refused(400, f"The body is not json_numpy: {error}") from error
    if not isinstance(payload, dict):
        raise _refused(400, "The body must be a JSON object with a picture and an instruction")
    return payload, is_encoded


def _pictures(payload: dict[str, Any], count: int) -> list[np.ndarray]:
    """The main camera's picture, then those of the wrists in the order of the request.

    As in the reference, a model with one camera gets the main camera's picture.
    """
    main = next((name for name in _MAIN_CAMERA if name in payload), None)
    if main is None:
        raise _refused(400, "The request has neither image nor full_image")
    names = [main, *(name for name in payload if _OTHER_CAMERAS in name)]
    names = names[:1] if count == 1 else names
    for name in names:
        if not isinstance(payload[name], np.ndarray):
            raise _refused(400, f"{name} must be an array (uint8, [height, width, 3])")
    return [payload[name] for name in names]


def _prepare(generator: Any, payload: dict[str, Any]) -> ActionInputs:
    """Read the pictures and texts of a request, which does not need the generation thread.

    Raises:
        HTTPException: 400, naming what cannot be used.
    """
    model, processor = generator.model, generator.processor
    config = action_config(model)
    instruction = payload.get("instruction")
    if not isinstance(instruction, str):
        raise _refused(400, "The request has no instruction (a text)")
    key = payload.get("unnorm_key", defaults.unnorm_key)
    if key is not None and not isinstance(key, str):
        raise _refused(400, "unnorm_key must be a text")
    pictures = _pictures(payload, config.num_images)
    image = pictures if config.num_images > 1 else pictures[0]
    # OpenVLA-OFT's clients send the state to every model.
    state = payload.get("state") if config.proprio_dim is not None else None
    options = {"discrete": defaults.discrete, "tokenizer_lock": generator._tokenizer_lock}
    try:
        return prepare(model, processor, image, instruction, key, state=state, **options)
    except ValueError as error:
        raise _refused(400, str(error)) from error


def _read(body: bytes) -> tuple[Any, ActionInputs, bool]:
    """The generator for a request, its prepared inputs, and whether it was encoded as text."""
    generator = _loaded()
    payload, is_encoded = _parse(body)
    return generator, _prepare(generator, payload), is_encoded


def _answer(prediction: Prediction, is_encoded: bool) -> Response:
    action = prediction.action
    text = json_numpy.dumps(list(action) if action.ndim > 1 else action)
    return Response(json.dumps(text) if is_encoded else text, media_type="application/json")


def _nobody_waits() -> Response:
    """For the log, where a client has disconnected."""
    return Response(status_code=499)


async def _body(request: Request) -> bytes:
    limit, body = ServerSettings.from_environment().max_body_bytes, bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _refused(413, f"The body of the request is larger than {limit} bytes")
    return bytes(body)


async def act(request: Request) -> Response:
    """The action for a picture and an instruction.

    Computed by the generation thread between two steps of the running answers.
    """
    try:
        body = await _body(request)
    except ClientDisconnect:
        return _nobody_waits()
    generator, inputs, is_encoded = await run_in_threadpool(_read, body)
    try:
        prediction = await generator.between_steps(
            lambda: infer(generator.model, inputs, action_ids_only=defaults.action_ids_only),
            request.is_disconnected,
        )
    except StoppingError as error:
        raise _refused(503, str(error)) from error
    except ValueError as error:
        raise _refused(400, str(error)) from error
    return _nobody_waits() if prediction is None else _answer(prediction, is_encoded)


def describe() -> dict[str, Any]:
    """The inputs and outputs of the loaded model (``GET /act``)."""
    model = _loaded().model
    config = action_config(model)
    return {
        "model": runtime.model_cache.get("model_path"),
        "decoding": config.decoding,
        "head": None if defaults.discrete else config.head,
        "chunk_size": config.chunk_size,
        "num_images": config.num_images,
        "proprio_dim": config.proprio_dim,
        "center_crop": config.center_crop,
        "unnorm_keys": sorted(model.config.norm_stats or {}),
        "unnorm_key": defaults.unnorm_key,
    }


def add_act_routes(app: FastAPI) -> None:
    """Add ``/act`` to ``app``."""
    options = {"dependencies": [Depends(_require_management_api_key)], "response_model": None}
    app.add_api_route("/act", act, methods=["POST"], **options)
    app.add_api_route("/act", describe, methods=["GET"], **options)
