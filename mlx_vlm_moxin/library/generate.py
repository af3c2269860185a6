"""Tokens one by one, or text piece by piece, from mlx-vlm's generation loop."""

from collections.abc import Iterable, Iterator
from typing import Any

import mlx.nn as nn
from mlx_vlm import apply_chat_template, stream_generate
from mlx_vlm.generate import DEFAULT_MAX_TOKENS, GenerationResult
from mlx_vlm.models.moxin.picture import PictureSource, read_picture
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor

from mlx_vlm_moxin.library import generation_settings


def _results(
    model: nn.Module,
    processor: MoxinProcessor,
    prompt: str | list[dict[str, Any]],
    image: PictureSource | None,
    settings: dict[str, Any],
) -> Iterator[GenerationResult]:
    """mlx-vlm's results for a question; the picture and the settings are checked at once."""
    generation_settings.check(settings, model.config)
    text = apply_chat_template(processor, model.config, prompt, num_images=int(image is not None))
    pictures = None if image is None else [read_picture(image)]
    processor.tokenizer.stopping_criteria.reset(model.config.eos_token_id)
    return stream_generate(model, processor, text, pictures, **settings)


def generate(
    model: nn.Module,
    processor: MoxinProcessor,
    prompt: str | list[dict[str, Any]],
    image: PictureSource | None = None,
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    temperature: float | None = None,
    **kwargs: Any,
) -> Iterator[int]:
    """The answer's tokens, each as soon as it is known; the end token is not among them.

    Args:
        prompt: the question as plain text, or the messages of a conversation
            (``{"role": ..., "content": ...}``); the chat template is applied here.
        image: the picture that the question is about, see
            ``picture.read_picture``.
        max_tokens: largest number of tokens.
        temperature: 0 for the likeliest token each time, above 0 for sampling; None for the value
            in the checkpoint's generation_config.json, or 0 if it has none.
        kwargs: ``mlx_vlm.stream_generate``'s other arguments, such as ``top_p``, ``seed``,
            ``prompt_cache``, ``kv_bits``.

    Yields:
        Token ids; ``processor.decode`` converts them to text.

    Raises:
        ValueError: if the picture or the value of a setting cannot be used.
    """
    settings = {"max_tokens": max_tokens, "temperature": temperature, **kwargs}
    results = _results(model, processor, prompt, image, settings)
    # The last result repeats a token to say why the answer ended.
    return (result.token for result in results if result.finish_reason is None)


def stream_text(
    model: nn.Module,
    processor: MoxinProcessor,
    prompt: str | list[dict[str, Any]],
    image: PictureSource | None = None,
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    temperature: float | None = None,
    **kwargs: Any,
) -> Iterator[str]:
    """The answer's text, piece by piece, each as soon as no later token can change it.

    The joined pieces equal the text of ``mlx_vlm.generate``, without surrounding space.

    Args:
        prompt, image, max_tokens, temperature, kwargs: as for ``generate``.

    Yields:
        Text, never empty.

    Raises:
        ValueError: see ``generate``.
    """
    settings = {"max_tokens": max_tokens, "temperature": temperature, **kwargs}
    return _stripped(result.text for result in _results(model, processor, prompt, image, settings))


def _stripped(pieces: Iterable[str]) -> Iterator[str]:
    """``pieces`` without the space at the start and the end of the joined text."""
    waiting, has_begun = "", False
    for piece in pieces:
        text = waiting + piece if has_begun else (waiting + piece).lstrip()
        shown = text.rstrip()
        waiting = text[len(shown) :]
        if shown:
            has_begun = True
            yield shown
