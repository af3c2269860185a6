"""Moxin's tokenizer for mlx-lm, the same as in mlx-vlm.

mlx-lm's loading differs in three points that change ids or text: ``AutoTokenizer``
rebuilds a source checkpoint's tokenizer, a chat template is expected to write ``<s>``,
and the streaming detokenizer has no entry for ids above ``<PAD>``.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_vlm.models.moxin.config import MODEL_TYPES, ModelConfig
from mlx_vlm.models.moxin.tokenization_moxin import MoxinDetokenizer, load_tokenizer


def _read_config(model_path: Path) -> dict[str, Any]:
    path = model_path / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def load_moxin_tokenizer(
    model_path: Path, config: ModelConfig, eos_token_ids: int | Iterable[int] | None = None
) -> TokenizerWrapper:
    """Tokenizer, chat template and detokenizer of a Moxin checkpoint directory.

    Raises:
        FileNotFoundError, ValueError: naming what its tokenizer files lack.
    """
    tokenizer = load_tokenizer(
        model_path,
        own_template=config.model_type == "moxin",
        prompt_format=config.prompt_format,
    )

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
        params = _read_config(model_path)
        if params.get("model_type") in MODEL_TYPES:
            config = ModelConfig.from_dict(params)
            return load_moxin_tokenizer(model_path, config, kwargs.get("eos_token_ids"))
        return original(model_path, tokenizer_config_extra, **kwargs)

    return load
