"""Refuses unusable schemas of structured output when the request arrives.

A schema that mlx-vlm's grammar engine cannot compile gives HTTP 500, and one that fails at the
first token ends every request in the batch.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor

from mlx_vlm_moxin.plugin.server.errors import BadRequestError, sentence


def structured_logits_processors(original: Callable) -> Callable:
    """mlx-vlm's function that creates a logits processor from a request's schema, if it has one."""

    @functools.wraps(original)
    def build(request: Any, processor: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(processor, MoxinProcessor):
            return original(request, processor, *args, **kwargs)
        _check_format(request)
        try:
            processors = original(request, processor, *args, **kwargs)
            for made in processors or ():
                _check_grammar(made)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in the engine, written in Rust, is no Exception
            raise BadRequestError(
                f"The schema of response_format cannot be used: {sentence(error)}"
            ) from error
        return processors

    return build


def _check_format(request: Any) -> None:
    """Refuse other values where mlx-vlm and the engine expect an object.

    Raises:
        BadRequestError: naming the place.
    """
    text = getattr(request, "text", None)
    given = {"response_format": getattr(request, "response_format", None), "text": text}
    if isinstance(text, dict):
        given["text.format"] = text.get("format")
    for name, value in given.items():
        if value is not None and not isinstance(value, dict):
            raise BadRequestError(f"{name} must be an object, got {value!r}")
    chosen = given["response_format"] or given.get("text.format") or {}
    if chosen.get("type") != "json_schema":
        return
    holder = chosen.get("json_schema", chosen)
    schema = holder.get("schema") if isinstance(holder, dict) else holder
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise BadRequestError(f"The schema of response_format is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise BadRequestError(f"The schema of response_format must be an object, got {schema!r}")


def _check_grammar(processor: Any) -> None:
    """Compute the mask of the first token.

    Raises:
        ValueError: if the grammar allows no answer.
    """
    from llguidance import LLMatcher

    matcher = LLMatcher(processor.llg_tokenizer, processor.grammar)
    matcher.compute_bitmask()
    error = matcher.get_error()
    if error:
        raise ValueError(f"it allows no answer ({error.splitlines()[0]})")
