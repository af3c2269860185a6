"""The model's context as a limit on every endpoint.

mlx-vlm's chat endpoint has the limit; the others queue any number of tokens. Counting tokens is
slow for a text of megabytes, so a text that cannot fit is refused by its length alone.
"""

from typing import Any

from mlx_vlm.models.moxin.tokenization_moxin import longest_token
from mlx_vlm.server.generation import (
    GenerationArguments,
    PromptTooLongError,
    get_configured_context_limit,
)
from mlx_vlm.server.runtime import runtime

from mlx_vlm_moxin.plugin.server.errors import BadRequestError
from mlx_vlm_moxin.plugin.server.json_body import text_length


def context_limit(config: Any) -> int | None:
    """Tokens of prompt and answer together; None if nothing limits them.

    Args:
        config: the model's; its positions and the server's ``--max-kv-size`` are limits.
    """
    positions = getattr(config.text_config, "max_position_embeddings", None)
    return min(filter(None, (get_configured_context_limit(), positions)), default=None)


def check_length(request: dict[str, Any], picture_sources: list[str]) -> None:
    """Refuse a request with more text than the context can hold, however it is tokenized.

    Args:
        request: the parsed body.
        picture_sources: its pictures, which are no text.

    Raises:
        BadRequestError: naming the length of the text and the largest length that fits.
    """
    config = runtime.model_cache.get("config")
    limit = context_limit(config)
    if limit is None:
        return
    characters = text_length(request) - sum(map(len, picture_sources))
    longest = limit * longest_token(runtime.model_cache.get("processor").tokenizer)
    if characters > longest:
        raise BadRequestError(
            f"The request has {characters} characters of text; the context of {limit} tokens "
            f"holds {longest} at most"
        )


def fit(prompt_tokens: int, arguments: GenerationArguments, config: Any) -> None:
    """Limit ``arguments.max_tokens`` to the room that the context has after the prompt.

    Args:
        prompt_tokens: number of tokens of the prompt, with those of the picture.
        arguments: of the request, changed in place.
        config: the model's.

    Raises:
        PromptTooLongError: if there is no room for an answer.
    """
    limit = context_limit(config)
    if limit is None:
        return
    if prompt_tokens >= limit:
        raise PromptTooLongError(
            f"The prompt has {prompt_tokens} tokens, its picture included; the context of {limit} "
            "tokens has no room for an answer"
        )
    arguments.max_tokens = min(arguments.max_tokens, limit - prompt_tokens)
