"""Configuration of the decoder: Llama or Mistral."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..base import BaseModelConfig
from .rope import complete_rope
from .validation import MAX_LAYERS, check_settings

# Of both decoders in transformers.
DEFAULT_ROPE_THETA = 10000.0
# Defaults of transformers' LlamaConfig and MistralConfig for settings missing from a text_config.
# max_position_embeddings is the exception: it is the value in the language model's own
# config, sets nothing in the arithmetic and is what the server reports.
LIBRARY_DEFAULTS = {
    "llama": {
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 4096,
        "sliding_window": None,
    },
    "mistral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
}


def _rope_settings(
    params: Mapping[str, Any], max_position_embeddings: int | None
) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` of a text_config, complete.

    transformers 5 writes ``rope_parameters`` where version 4 wrote the other two.
    """
    parameters = params.get("rope_scaling") or params.get("rope_parameters") or {}
    scaling = complete_rope(parameters, max_position_embeddings)
    theta = parameters.get("rope_theta")
    if theta is None:
        theta = params.get("rope_theta", DEFAULT_ROPE_THETA)
    return {"rope_theta": theta, "rope_scaling": scaling}


@dataclass
class TextConfig(BaseModelConfig):
    """The decoder, under the names that ``mlx_vlm.models.llama`` reads.

    HF-converted checkpoints omit settings that equal the defaults of the library's class, so
    ``rms_norm_eps`` is 1e-6 there. ``from_dict`` has the defaults of both decoders; those of the
    fields are Mistral's.
    """

    model_type: str = field(default="mistral", metadata={"choices": [*LIBRARY_DEFAULTS]})
    hidden_size: int = 4096
    num_hidden_layers: int = field(default=32, metadata={"high": MAX_LAYERS})
    intermediate_size: int = 14336
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    rms_norm_eps: float = field(default=1e-6, metadata={"high": 1})
    vocab_size: int = 32000
    max_position_embeddings: int = field(default=32768, metadata={"high": 2**31})
    rope_theta: float = DEFAULT_ROPE_THETA
    rope_traditional: bool = False
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None
    sliding_window: int | None = field(default=4096, metadata={"high": 2**31})
    hidden_act: str = field(default="silu", metadata={"choices": ["silu"]})
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    layer_types: list[str] | None = None

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> "TextConfig":
        """Build from a ``text_config``; missing settings have the library's defaults.

        Raises:
            ValueError: naming what is out of range or not supported.
        """
        check_settings(cls, params, "text_config")
        defaults = LIBRARY_DEFAULTS[params.get("model_type", "mistral")]
        # Our default of max_position_embeddings is not a library's, so it must not reach the RoPE.
        rope = _rope_settings(params, params.get("max_position_embeddings"))
        return super().from_dict({**defaults, **params, **rope})

    def __post_init__(self):
        check_settings(TextConfig, vars(self), "text_config")
        if self.model_type == "llama":
            # transformers' Llama ignores it.
            self.sliding_window = None
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        vars(self).update(_rope_settings(vars(self), self.max_position_embeddings))
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"config.json: text_config.num_attention_heads {self.num_attention_heads} is "
                f"no multiple of num_key_value_heads {self.num_key_value_heads}"
            )
        if self.tie_word_embeddings:
            raise ValueError(
                "config.json: text_config.tie_word_embeddings is True; supported are models whose "
                "output head has separate weights"
            )
        if self.head_dim % 2 or not self.head_dim:
            raise ValueError(
                f"config.json: text_config.head_dim must be an even number, got {self.head_dim}"
            )
        # The window is applied in language.py; every layer keeps the full cache.
        self.layer_types = ["full_attention"] * self.num_hidden_layers
