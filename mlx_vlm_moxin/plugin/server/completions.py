"""``POST /v1/completions``: the text after a prompt, without the chat template.

OpenAI's older API, used by editors and benchmarks; mlx-vlm's server lacks it. Sampling settings,
limits, ``stop`` and disconnected clients are handled as on the other endpoints.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from mlx_vlm import server
from mlx_vlm.server import ChatRequest, _require_management_api_key
from mlx_vlm.server.runtime import runtime
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response, StreamingResponse

from mlx_vlm_moxin.plugin.server.errors import BadRequestError, sentence, serves_moxin
from mlx_vlm_moxin.plugin.server.request_threads import read_next

ENDPOINT = "/v1/completions"
DEFAULT_MAX_TOKENS = 16  # OpenAI's
# Parameters of OpenAI's API that are not supported here, and their values without effect.
_UNSUPPORTED = {"echo": (False,), "suffix": ("",), "logprobs": (0, False), "best_of": (1,)}


def chat_request(body: dict[str, Any]) -> tuple[str, ChatRequest]:
    """The prompt, and the other parameters in the form of mlx-vlm's chat request.

    Raises:
        BadRequestError: naming what cannot be used.
    """
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise BadRequestError("prompt must be one text that is not empty")
    for name, nothing in _UNSUPPORTED.items():
        if body.get(name) is not None and body[name] not in nothing:
            raise BadRequestError(f"{name}={body[name]!r} cannot be used on {ENDPOINT}")
    settings = {key: value for key, value in body.items() if key not in (*_UNSUPPORTED, "prompt")}
    settings = {"max_tokens": DEFAULT_MAX_TOKENS, **settings}
    settings["messages"] = [{"role": "user", "content": prompt}]
    try:
        return prompt, ChatRequest(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequestError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


class Completion:
    """One running answer."""

    def __init__(self, request: ChatRequest, prompt_tokens: int, tokens: Any):
        self._request = request
        self._prompt_tokens = prompt_tokens
        self._tokens = tokens
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._started = time.perf_counter()
        self._generated = 0
        self._finish_reason: str | None = None

    def next_text(self) -> str | None:
        """Text of the next token; None after the last one. Blocks until it is generated."""
        token = None if self._finish_reason else next(self._tokens, None)
        if token is None:
            return None
        self._generated += token.token_count
        self._finish_reason = token.finish_reason
        return token.text

    def whole(self) -> dict[str, Any]:
        """The complete answer."""
        text = "".join(iter(self.next_text, None))
        return {**self._chunk(text, self._finish_reason), "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        total = self._prompt_tokens + self._generated
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._generated,
            "total_tokens": total,
        }

    def _chunk(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._request.model,
            "choices": [choice],
        }

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        try:
            while (text := await read_next(self._tokens, self.next_text)) is not None:
                if text or self._finish_reason:
                    yield _event(self._chunk(text, self._finish_reason))
            options = self._request.stream_options
            if options is not None and options.include_usage:
                usage = {**self._chunk("", None), "choices": [], "usage": self._usage()}
                yield _event(usage)
            yield "data: [DONE]\n\n"
            self.record()
        except Exception as error:
            self.record(error)
            yield _event({"error": sentence(error)})
        finally:
            self._tokens.close()

    def record(self, error: BaseException | None = None) -> None:
        """Count the request in the server's metrics."""
        known = {"endpoint": ENDPOINT, "model": self._request.model}
        known["stream"] = self._request.stream
        if error is not None:
            runtime.metrics.record_failure(**known, error=sentence(error))
            return
        usage = {**self._usage(), "generated_tokens": self._generated}
        elapsed = time.perf_counter() - self._started
        runtime.metrics.record_success(
            {**known, **usage, "timestamp_unix": time.time(), "request_elapsed_s": elapsed}
        )


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def complete(http_request: Request) -> Response:
    """Answer a request.

    Raises:
        HTTPException: 400, with the error of the request; 404 for other models than Moxin.
    """
    if not serves_moxin():
        raise HTTPException(404, "Not Found")
    prompt, request = chat_request(await http_request.json())
    # Looked up here, because they are replaced after this module has been imported.
    _, processor, _ = server.get_cached_model(request.model)
    args = server._build_gen_args(request, processor)
    generate = runtime.response_generator.generate
    try:
        generated, tokens = await asyncio.to_thread(generate, prompt, None, None, args)
    except ValueError as error:
        raise HTTPException(400, sentence(error)) from error
    stream = {"endpoint": ENDPOINT, "model": request.model, "stream": request.stream}
    runtime.metrics.begin_request(**stream)
    completion = Completion(request, generated.prompt_tokens, tokens)
    if request.stream:
        return StreamingResponse(completion.events(), media_type="text/event-stream")
    try:
        answer = await asyncio.to_thread(completion.whole)
    except Exception as error:
        completion.record(error)
        raise
    completion.record()
    return JSONResponse(answer)


def add_completions(app: FastAPI) -> None:
    """Add the endpoint to ``app``, with and without ``/v1``."""
    dependencies = [Depends(_require_management_api_key)]
    for path in (ENDPOINT, ENDPOINT.removeprefix("/v1")):
        app.post(path, dependencies=dependencies, include_in_schema=False)(complete)
