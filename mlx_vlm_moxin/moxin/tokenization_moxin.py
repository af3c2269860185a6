"""Moxin's tokenizer for mlx-vlm: Llama's, with a prompt template and exact detokenizing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerFast

from ...tokenizer_utils import StreamingDetokenizer
from .config import ModelConfig
from .prompts import chat_template

_longest_tokens: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def read_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The unchanged tokenizer.json, with padding on the left.

    Raises:
        ValueError: naming the directory, if its files cannot be read.
    """
    try:
        return PreTrainedTokenizerFast.from_pretrained(directory, padding_side="left")
    # On malformed files the tokenizers library raises bare exceptions or panics, which are
    # no subclass of Exception.
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error)[:200].split())}"
        raise ValueError(
            f"The tokenizer in {directory} cannot be read ({reason}); download its files again"
        ) from error


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, config: ModelConfig) -> None:
    """Refuse a tokenizer whose ids mean something else to the model.

    Raises:
        ValueError: naming the ids of both.
    """
    for name in ("bos_token_id", "pad_token_id"):
        found, expected = getattr(tokenizer, name), getattr(config, name)
        if found != expected:
            raise ValueError(f"config.json: {name} is {expected}, but the tokenizer's is {found}")
    last = max(tokenizer.get_vocab().values())
    if last >= config.image_token_index:
        raise ValueError(
            f"config.json: image_token_index is {config.image_token_index}, but the tokenizer "
            f"has tokens up to id {last}"
        )


def longest_token(tokenizer: Any) -> int:
    """Characters of the vocabulary's longest token, which bounds a text of that many tokens."""
    found = _longest_tokens.get(tokenizer)
    if found is None:
        found = _longest_tokens[tokenizer] = max(map(len, tokenizer.get_vocab()))
    return found


def load_tokenizer(
    model_path: Path, *, own_template: bool, prompt_format: str
) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint directory, with a chat template.

    ``PreTrainedTokenizerFast`` uses tokenizer.json unchanged. ``AutoTokenizer`` would
    rebuild it as a Llama tokenizer, whose ids differ where text starts with a space.

    Args:
        model_path: directory with tokenizer.json and tokenizer_config.json.
        own_template: keep the checkpoint's chat template. A source checkpoint may have its
            language model's, which may differ from the prompt that the model was trained on.
        prompt_format: one of ``prompts.PROMPT_FORMATS``, for any other chat template.

    Raises:
        FileNotFoundError: if there is no tokenizer.json.
        ValueError: if the tokenizer lacks ``<s>``, ``</s>`` or a padding token.
    """
    if not (model_path / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"No tokenizer.json in {model_path}; copy the checkpoint's tokenizer files there"
        )
    tokenizer = read_tokenizer(model_path)
    for name in ("bos_token", "eos_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"The tokenizer in {model_path} has no {name}")
    if not own_template or tokenizer.chat_template is None:
        tokenizer.chat_template = chat_template(prompt_format)
    return tokenizer


class MoxinDetokenizer(StreamingDetokenizer):
    """Streams text; the joined pieces equal ``tokenizer.decode`` of all tokens.

    Special tokens and ids above ``<PAD>`` (without a token) give no text. Byte tokens are held back
    until their run is complete, since only the whole run can be decoded; text that ends in U+FFFD
    is not held back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        self._silent = frozenset(tokenizer.all_special_ids)
        self.reset()

    def reset(self) -> None:
        """Start a new text."""
        self.text = ""
        self.offset = 0
        self.tokens = []
        self._pending = []
        self._last = []

    def add_token(self, token: int, skip_special_token_ids: Sequence[int] = ()) -> None:
        """Append a token; its text appears in ``text`` once its bytes are complete."""
        piece = self._tokenizer.convert_ids_to_tokens(int(token))
        if piece is None or token in self._silent or token in skip_special_token_ids:
            return
        self.tokens.append(token)
        self._pending.append(token)
        if not (piece.startswith("<0x") and piece.endswith(">")):
            self._flush()

    def finalize(self) -> None:
        """End the text: incomplete bytes become replacement characters."""
        self._flush()

    def _flush(self) -> None:
        # Decoded together with the last emitted token, since a leading space is lost without it.
        known = self._tokenizer.decode(self._last)
        self.text += self._tokenizer.decode(self._last + self._pending)[len(known) :]
        self._last = self._pending[-1:] or self._last
        self._pending = []

    @property
    def last_segment(self) -> str:
        """Text that was added since the last call."""
        segment = self.text[self.offset :]
        self.offset = len(self.text)
        return segment
