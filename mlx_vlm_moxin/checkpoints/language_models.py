"""The language models of the Prismatic family, by their ids in checkpoints."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Licence:
    """Terms of a language model's weights.

    Attributes:
        hub_id: id of the licence on the Hub.
        note: one sentence that a reader of a model card should know.
    """

    hub_id: str
    note: str = ""


LLAMA_2 = Licence(
    "llama2",
    "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
    "All Rights Reserved. Weights made from it may only be distributed with a copy of this "
    "licence (https://ai.meta.com/llama/license/) and under Meta's Acceptable Use Policy.",
)
APACHE_2 = Licence("apache-2.0")
MIT = Licence("mit")


@dataclass(frozen=True)
class LanguageModel:
    """A language model that Prismatic models were built on.

    Attributes:
        name: its usual name.
        repository: Hub repository with its config and tokenizer.
        licence: the licence of its weights.
        text_config: keyword arguments of ``TextConfig`` with its sizes.
    """

    name: str
    repository: str
    licence: Licence
    text_config: dict[str, Any] = field(default_factory=dict)


_LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
}
_LLAMA_13B = {
    **_LLAMA_7B,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
_MISTRAL_7B = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32064,
}
_MOXIN_7B = {**_MISTRAL_7B, "num_hidden_layers": 36}

LANGUAGE_MODELS = {
    "llama2-7b-pure": LanguageModel("Llama 2 7B", "meta-llama/Llama-2-7b-hf", LLAMA_2, _LLAMA_7B),
    "llama2-13b-pure": LanguageModel(
        "Llama 2 13B", "meta-llama/Llama-2-13b-hf", LLAMA_2, _LLAMA_13B
    ),
    "llama2-7b-chat": LanguageModel(
        "Llama 2 7B Chat", "meta-llama/Llama-2-7b-chat-hf", LLAMA_2, _LLAMA_7B
    ),
    "llama2-13b-chat": LanguageModel(
        "Llama 2 13B Chat", "meta-llama/Llama-2-13b-chat-hf", LLAMA_2, _LLAMA_13B
    ),
    "vicuna-v15-7b": LanguageModel("Vicuna 1.5 7B", "lmsys/vicuna-7b-v1.5", LLAMA_2, _LLAMA_7B),
    "vicuna-v15-13b": LanguageModel("Vicuna 1.5 13B", "lmsys/vicuna-13b-v1.5", LLAMA_2, _LLAMA_13B),
    "mistral-v0.1-7b-pure": LanguageModel(
        "Mistral 7B v0.1", "mistralai/Mistral-7B-v0.1", APACHE_2, _MISTRAL_7B
    ),
    "mistral-v0.1-7b-instruct": LanguageModel(
        "Mistral 7B Instruct v0.1", "mistralai/Mistral-7B-Instruct-v0.1", APACHE_2, _MISTRAL_7B
    ),
    "moxin-7b-pure": LanguageModel("Moxin 7B", "moxin-org/Moxin-7B-Instruct", MIT, _MOXIN_7B),
}


def licence_note(llm_backbone_id: str | None) -> str:
    """What a reader of a model card should know about the language model's licence.

    Args:
        llm_backbone_id: the language model's id in config.json; None if it names none.

    Returns:
        One sentence; "" if the licence needs no mention.
    """
    if llm_backbone_id is None:
        return ""
    if llm_backbone_id not in LANGUAGE_MODELS:
        return f"The licence of the language model {llm_backbone_id} applies to the weights too."
    return LANGUAGE_MODELS[llm_backbone_id].licence.note
