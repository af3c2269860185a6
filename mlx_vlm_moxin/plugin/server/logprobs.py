"""Tokens of log-probabilities with their text and bytes in the answer.

mlx-vlm decodes every token separately, so the space before a word is lost, and a character of
several tokens becomes several U+FFFD.
"""

import re
from collections.abc import Callable
from typing import Any

from mlx_vlm_moxin.plugin.server.errors import serves_moxin

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # SentencePiece's symbol for a space


def decode_token(original: Callable) -> Callable:
    """mlx-vlm's function for a token's text and its UTF-8 bytes."""

    def decode(tokenizer: Any, token_id: int) -> tuple[str, list[int] | None]:
        piece = tokenizer.convert_ids_to_tokens(int(token_id)) if serves_moxin() else None
        if not isinstance(piece, str):
            return original(tokenizer, token_id)
        byte = _BYTE.fullmatch(piece)
        if byte is not None:
            value = bytes([int(byte[1], 16)])
            return value.decode(errors="replace"), list(value)
        text = piece.replace(_SPACE, " ")
        return text, list(text.encode())

    return decode
