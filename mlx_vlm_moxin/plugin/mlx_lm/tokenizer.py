"""Moxin's tokenizer for mlx-lm: the one that the model has in mlx-vlm.

mlx-lm's own loading differs in three points that change ids or text: ``AutoTokenizer``
rebuilds a source checkpoint's tokenizer, a chat template is expected to write ``<s>``,
and the streaming detokenizer has no entry for ids above ``<PAD>``.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_vlm.models.moxin.config import MODEL_TYPES
from mlx_vlm.models.moxin.tokenization_moxin import MoxinDetokenizer, load_tokenizer


def _model_type(model_path: Path) -> str | None:
    config = model_path / "config.json"
    if not config.is_file():
        return None
    return json.loads(config.read_text(encoding="utf-8")).get("model_type")


def load_moxin_tokenizer(
    model_path: Path, model_type: str, eos_token_ids: int | Iterable[int] | None = None
) -> TokenizerWrapper:
    """Tokenizer, chat template and detokenizer of a Moxin checkpoint directory.

    Raises:
        FileNotFoundError, ValueError: what its tokenizer files lack.
    """
    tokenizer = load_tokenizer(model_path, own_template=model_type == "moxin")

    def chat_template(*args: Any, **kwargs: Any) -> str:
        prompt = tokenizer.apply_chat_template(*args, **{**kwargs, "tokenize": False})
        return tokenizer.bos_token + prompt

    if isinstance(eos_token_ids, int):
        eos_token_ids = [eos_token_ids]
    return TokenizerWrapper(
        tokenizer, MoxinDetokenizer, eos_token_ids=eos_token_ids, chat_template=chat_template
    )


def load_tokenizer_of(original: Callable[..., TokenizerWrapper]) -> Callable[..., TokenizerWrapper]:
    """``mlx_lm.utils._load_tokenizer`` that loads Moxin's tokenizer with this module.

    Args:
        original: the function, used for all other checkpoints.
    """

    def load(
        model_path: Path, tokenizer_config_extra: dict | None = None, **kwargs: Any
    ) -> TokenizerWrapper:
        model_type = _model_type(model_path)
        if model_type in MODEL_TYPES:
            return load_moxin_tokenizer(model_path, model_type, kwargs.get("eos_token_ids"))
        return original(model_path, tokenizer_config_extra, **kwargs)

    return load
