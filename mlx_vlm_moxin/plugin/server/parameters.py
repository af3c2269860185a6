"""Parameters of a request that mlx-vlm's server would ignore or fail on.

An ignored parameter gives a wrong answer. One that fails in the generation thread ends every
running request, and a ``logit_bias`` for an id outside the vocabulary writes outside the logits'
memory.
"""

import functools
import math
import secrets
from collections.abc import Callable
from typing import Any

from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from mlx_vlm.server.generation import get_top_logprobs_k
from mlx_vlm.server.runtime import runtime

from mlx_vlm_moxin.plugin.server.errors import BadRequestError
from mlx_vlm_moxin.plugin.server.generator import adopt

_LENGTHS = ("max_tokens", "max_output_tokens", "max_completion_tokens")
_RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "top_n_sigma": (0, 1000),
    "typical_p": (0, 1),
}
MAX_TOP_LOGPROBS = 20
# Value of `include` for log-probabilities in OpenAI's Responses API.
_INCLUDED_LOGPROBS = "message.output_text.logprobs"
# Parameters of OpenAI's APIs: the supported values, and the reason for the limit.
_FIXED = {
    "n": ((None, 1), "a request gets one answer, so send it several times"),
    "best_of": ((None, 1), "a request gets one answer, so send it several times"),
    "modalities": ((None, [], ["text"]), "Moxin answers in text"),
    "audio": ((None,), "Moxin answers in text"),
    "background": ((None, False), "an answer comes with its request"),
}


def _refuse(name: str, value: Any, reason: str) -> None:
    raise BadRequestError(f"{name}={value!r} cannot be used: {reason}")


def _is_token_id(key: Any, vocab_size: int) -> bool:
    try:
        return 0 <= int(key) < vocab_size
    except (TypeError, ValueError):
        return False


def stop_strings(request: Any) -> list[str]:
    """OpenAI's ``stop`` (a string or a list) or Anthropic's ``stop_sequences``.

    Raises:
        BadRequestError: if it is neither.
    """
    stop = getattr(request, "stop_sequences", None)
    if stop is None:
        stop = (getattr(request, "model_extra", None) or {}).get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        _refuse("stop", stop, "it must be a string or a list of strings, none empty")
    return stops


def check(request: Any, vocab_size: int) -> None:
    """Refuse unsupported parameters.

    Args:
        request: one of mlx-vlm's request models; fields that they lack are ignored.
        vocab_size: width of the logits.

    Raises:
        BadRequestError: naming the parameter and the reason.
    """
    values = {**dict(request), **(getattr(request, "model_extra", None) or {})}
    if values.get("messages") == []:
        _refuse("messages", [], "at least one message is needed")
    for name, (usual, reason) in _FIXED.items():
        if values.get(name) not in usual:
            _refuse(name, values[name], reason)
    tools = values.get("tools") or values.get("functions")
    if tools and values.get("tool_choice") != "none":
        raise BadRequestError("Moxin calls no tools: leave out tools and functions")
    _check_numbers(values)
    if (values.get("top_k") or 0) >= vocab_size:
        _refuse("top_k", values["top_k"], f"it must be less than the vocabulary's {vocab_size}")
    if min(values.get("resize_shape") or [1]) < 1:
        _refuse("resize_shape", values["resize_shape"], "sides must be at least 1 pixel")
    _check_logprobs(request, values)
    bias = values.get("logit_bias")
    if bias is None:
        return
    if not isinstance(bias, dict) or not all(_is_token_id(key, vocab_size) for key in bias):
        _refuse("logit_bias", bias, f"its keys must be token ids from 0 to {vocab_size - 1}")
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in bias.values()):
        _refuse("logit_bias", bias, "its values must be finite numbers")


def _check_numbers(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            _refuse(name, value, "it must be a finite number")
    for name in _LENGTHS:
        value = values.get(name)
        if value is not None and not (_is_number(value, int) and value >= 1):
            _refuse(name, value, "it must be a whole number, at least 1")
    for name in ("seed", "top_k"):
        if values.get(name) is not None and not _is_number(values[name], int):
            _refuse(name, values[name], "it must be a whole number")
    for name, (low, high) in _RANGES.items():
        value = values.get(name)
        if value is not None and not (_is_number(value) and low <= value <= high):
            _refuse(name, value, f"it must be from {low} to {high}")
    penalty = values.get("repetition_penalty")
    if penalty is not None and not penalty > 0:
        _refuse("repetition_penalty", penalty, "it must be positive; 1 means none")


def _is_number(value: Any, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_logprobs(request: Any, values: dict[str, Any]) -> None:
    """The chat endpoint returns log-probabilities, as many as the server was started with."""
    wanted = values.get("top_logprobs") or 0
    if not _is_number(wanted, int):
        _refuse("top_logprobs", wanted, "it must be a whole number")
    included = values.get("include")
    asks = wanted or (isinstance(included, list) and _INCLUDED_LOGPROBS in included)
    if asks and "top_logprobs" not in type(request).model_fields:
        raise BadRequestError("Log-probabilities are returned by /v1/chat/completions only")
    if wanted > get_top_logprobs_k():
        _refuse(
            "top_logprobs",
            wanted,
            f"this server returns {get_top_logprobs_k()}; start it with --top-logprobs-k {wanted}"
            if wanted <= MAX_TOP_LOGPROBS
            else f"it must be from 0 to {MAX_TOP_LOGPROBS}",
        )
    if wanted and not values.get("logprobs"):
        _refuse("top_logprobs", wanted, "it needs logprobs=true")


def build_gen_args(original: Callable) -> Callable:
    """The function that converts every request into ``GenerationArguments``.

    Args:
        original: mlx-vlm's ``_build_gen_args``, called once the parameters are checked.
    """

    @functools.wraps(original)
    def build_gen_args(request: Any, processor: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(processor, MoxinProcessor):
            return original(request, processor, *args, **kwargs)
        # Also for requests that passed the gate before a model was loaded.
        if runtime.response_generator is not None:
            adopt(runtime.response_generator)
        check(request, processor.vocab_size)
        try:
            arguments = original(request, processor, *args, **kwargs)
        except ValueError as error:
            raise BadRequestError(str(error)) from error
        arguments.stop = stop_strings(request)
        # mlx-vlm drops fields that its request models lack, and its default seed is constant.
        extra = request.model_extra or {}
        for name in ("min_p", "seed"):
            if name in extra:
                setattr(arguments, name, extra[name])
        if "seed" not in extra and "seed" not in request.model_fields_set:
            arguments.seed = secrets.randbits(32)
        # Anthropic's endpoint removes the stop sequence itself, to report which one it was.
        arguments.include_stop = hasattr(request, "stop_sequences")
        arguments.is_streamed = bool(getattr(request, "stream", False))
        arguments.sends_logprobs = bool(getattr(request, "logprobs", False))
        # Computed for a batch only if its first request has them; the others would get zeros.
        arguments.logprobs = True
        length = extra.get("max_completion_tokens")
        if length is not None and "max_tokens" not in request.model_fields_set:
            arguments.max_tokens = length
        return arguments

    return build_gen_args
