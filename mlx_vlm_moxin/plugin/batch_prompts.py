"""Prompts for ``mlx_vlm.batch_generate`` that are already formatted by the chat template.

``batch_generate`` applies the chat template itself, ``generate`` does not; so a program that
prepares its prompts in the same way for both would prompt the model with
``In: In: question\\nOut:\\nOut:``.
"""

import functools
from collections.abc import Callable
from typing import Any

from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor

_MESSAGE = "message"


def apply_chat_template(original: Callable) -> Callable:
    """mlx-vlm's function, without a second formatting of formatted prompts."""

    @functools.wraps(original)
    def apply_once(processor: Any, config: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(processor, MoxinProcessor) and isinstance(prompt, str):
            start, _, end = original(processor, config, _MESSAGE).partition(_MESSAGE)
            if start and end and prompt.startswith(start) and prompt.endswith(end):
                return prompt
        return original(processor, config, prompt, *args, **kwargs)

    return apply_once
