"""Config and tokenizer of the language model that a native checkpoint was built on."""

from pathlib import Path
from typing import Any

from mlx_vlm.models.moxin import tokenization_moxin
from mlx_vlm.models.moxin.prompts import chat_template
from mlx_vlm.models.moxin.text_config import TextConfig
from transformers import PreTrainedTokenizerFast

from mlx_vlm_moxin.checkpoints.language_models import LANGUAGE_MODELS
from mlx_vlm_moxin.checkpoints.native_output import native_errors_dropped
from mlx_vlm_moxin.checkpoints.regular_files import check_regular
from mlx_vlm_moxin.checkpoints.sources.directory import SMALL_FILES, check_directory, read_json
from mlx_vlm_moxin.checkpoints.sources.files import fetch
from mlx_vlm_moxin.checkpoints.sources.sentencepiece_file import read_sentencepiece

SENTENCEPIECE_FILE = "tokenizer.model"
PAD_TOKEN = "<PAD>"
# prismatic/models/backbones/llm/base_llm.py: resize_token_embeddings(pad_to_multiple_of=64).
VOCAB_MULTIPLE = 64


def fetch_language_model(llm_backbone_id: str, given: str | None) -> Path:
    """The directory with config.json and tokenizer of a language model, downloaded if needed.

    Args:
        llm_backbone_id: the language model's id in the run's config.json.
        given: directory or Hub repository; None for the published one.

    Raises:
        FileNotFoundError, OSError, ValueError: naming what is missing or wrong.
    """
    if given is None:
        if llm_backbone_id not in LANGUAGE_MODELS:
            raise ValueError(
                f"The language model {llm_backbone_id!r} is not known; give --llm a directory or "
                "Hub repository with its config.json and tokenizer.json"
            )
        given = LANGUAGE_MODELS[llm_backbone_id].repository
    directory = fetch(given, [*SMALL_FILES, SENTENCEPIECE_FILE])
    check_directory(directory)
    return directory


def _read_sentencepiece(directory: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a language model that is published without tokenizer.json."""
    check_regular(directory / SENTENCEPIECE_FILE)
    tokenizer = read_sentencepiece(directory / SENTENCEPIECE_FILE)
    special = {
        f"{name}_token": tokenizer.id_to_token(index)
        for index, name in enumerate(("unk", "bos", "eos"))
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **special,
    )


def read_tokenizer(directory: Path, max_length: int, prompt_format: str) -> PreTrainedTokenizerFast:
    """The language model's tokenizer with ``<PAD>`` added after its vocabulary.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or malformed.
    """
    with native_errors_dropped():
        if (directory / "tokenizer.json").is_file():
            tokenizer = tokenization_moxin.read_tokenizer(directory)
        elif (directory / SENTENCEPIECE_FILE).is_file():
            tokenizer = _read_sentencepiece(directory)
        else:
            raise FileNotFoundError(
                f"No tokenizer.json and no {SENTENCEPIECE_FILE} in {directory}; give --llm a "
                "directory with one of them"
            )
    if tokenizer.bos_token is None or tokenizer.eos_token is None:
        raise ValueError(f"The tokenizer in {directory} has no bos_token or no eos_token")
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.model_max_length = max_length
    tokenizer.chat_template = chat_template(prompt_format)
    return tokenizer


def read_text_config(directory: Path, tokenizer: PreTrainedTokenizerFast) -> TextConfig:
    """The decoder's config, with the vocabulary padded as in Prismatic's training.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or not supported.
    """
    params: dict[str, Any] = read_json(directory / "config.json")
    vocab_size = -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return TextConfig.from_dict({**params, "vocab_size": vocab_size})
