"""``mlx_vlm.chat`` and ``mlx_vlm.chat_ui``: the end of input, and further questions on a picture.

Both load their model while they run as ``__main__`` or while they are imported, so the table of
replaced names cannot name them: the names that they use are replaced in the running module.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any


def running_module(name: str) -> ModuleType | None:
    """The module ``name``, also if ``python -m`` runs it; None if it is not imported."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return main if spec is not None and spec.name == name else sys.modules.get(name)


def install() -> None:
    """Change the running chat, if there is one; called while it loads its model."""
    chat, page = running_module("mlx_vlm.chat"), running_module("mlx_vlm.chat_ui")
    if chat is not None and not issubclass(chat.Prompt, _EndOfInput):
        chat.Prompt = ending_prompt(chat.Prompt)
    if page is not None and not isinstance(page.gr, _Gradio):
        page.gr = _Gradio(page.gr)


class _EndOfInput:
    """Marks the prompt below."""


def ending_prompt(prompt: type) -> type:
    """Rich's ``Prompt``, which ends the process when the input ends.

    The chat handles ``EOFError`` like an error after which the next line may succeed, and so prints
    it forever.
    """

    class EndingPrompt(prompt, _EndOfInput):
        @classmethod
        def ask(cls, *args: Any, **kwargs: Any) -> Any:
            try:
                return prompt.ask(*args, **kwargs)
            except EOFError:
                print()
                raise SystemExit(0) from None

    return EndingPrompt


class _Gradio:
    """Gradio with a chat interface that remembers the conversation's picture."""

    def __init__(self, gradio: ModuleType):
        self._gradio = gradio

    def __getattr__(self, name: str) -> Any:
        return self._chat_interface if name == "ChatInterface" else getattr(self._gradio, name)

    def _chat_interface(self, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        return self._gradio.ChatInterface(keeping_picture(fn), *args, **kwargs)


def keeping_picture(answer: Callable) -> Callable:
    """The page's function that answers a message, given the last picture of the conversation.

    mlx-vlm's function uses the current message's picture only, and so answers a second question
    about a picture without it.
    """

    @functools.wraps(answer)
    def answer_with_picture(message: Any, history: list, *settings: Any) -> Iterator[str]:
        files = message.get("files") if isinstance(message, dict) else None
        if isinstance(message, dict) and not files:
            picture = last_picture(history)
            if picture is not None:
                message = {**message, "files": [picture]}
        yield from answer(message, history, *settings)

    return answer_with_picture


def last_picture(history: list) -> str | None:
    """Path of the last file that a user has sent in Gradio's history of a conversation."""
    for item in reversed(history):
        if not isinstance(item, dict) or item.get("role") != "user":
            continue
        for part in reversed(_parts(item.get("content"))):
            if isinstance(part, (list, tuple)) and part:
                return part[0]
            if isinstance(part, dict):
                file = part.get("file", part)
                path = file.get("path") if isinstance(file, dict) else file
                if isinstance(path, str):
                    return path
    return None


def _parts(content: Any) -> list:
    return content if isinstance(content, list) else [content]
