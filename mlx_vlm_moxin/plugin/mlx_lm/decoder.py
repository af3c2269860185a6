"""``mlx_lm.models.moxin``: a Moxin checkpoint's decoder from mlx-lm's Llama blocks.

mlx-lm reads tensors when they are computed; those of the vision towers and the projector
are dropped before that, so they stay on disk.
"""

from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs, create_attention_mask
from mlx_lm.models.llama import LlamaModel
from mlx_lm.models.llama import Model as LlamaForCausalLM
from mlx_lm.models.llama import ModelArgs as LlamaArgs
from mlx_vlm.models.base import cache_position_offset
from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.linear import replace_linears

from mlx_vlm_moxin.plugin import replacements, upstream

PREFIX = "language_model."

replacements.apply(upstream.DECODER)


@dataclass
class ModelArgs(BaseModelArgs):
    """The settings that mlx-lm reads from config.json.

    Attributes:
        text_config: the complete settings of the decoder; a source checkpoint's config.json omits
            those that equal the library's Mistral defaults.
    """

    model_type: str
    text_config: LlamaArgs

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> "ModelArgs":
        """From config.json.

        Raises:
            ValueError: naming what is missing, out of range or not supported.
        """
        config = ModelConfig.from_dict(params)
        text_config = LlamaArgs.from_dict(asdict(config.text_config))
        return cls(model_type=config.model_type, text_config=text_config)


class MistralModel(LlamaModel):
    """``LlamaModel`` with Mistral's sliding window in every layer and a full cache.

    A full cache, unlike a rotating one, can be quantised and trimmed back to a prefix.
    """

    def _attention_mask(self, h: mx.array, cache: Any | None) -> Any:
        # Below the window's length the cheaper causal mask is the same.
        window = self.sliding_window
        if window is not None and cache_position_offset(cache) + h.shape[1] <= window:
            window = None
        return create_attention_mask(h, cache, window_size=window)

    def __call__(
        self,
        inputs: mx.array,
        cache: list | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Last hidden states ``[B, T, D]`` of ids ``[B, T]`` or of ``input_embeddings``."""
        h = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        if cache is None:
            cache = [None] * len(self.layers)
        mask = self._attention_mask(h, cache[0])
        for layer, layer_cache in zip(self.layers, cache):
            h = layer(h, mask, cache=layer_cache)
        return self.norm(h)


class Decoder(LlamaForCausalLM):
    """``LlamaForCausalLM`` around ``MistralModel``."""

    def __init__(self, args: LlamaArgs):
        super().__init__(args)
        self.model = MistralModel(args)
        replace_linears(self)


class Model(nn.Module):
    """The decoder under its name in the checkpoint, ``language_model``.

    It has no ``make_cache``, so that ``--max-kv-size`` keeps its meaning.
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.language_model = Decoder(args.text_config)

    def __call__(
        self,
        inputs: mx.array,
        cache: list | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Logits ``[B, T, vocab_size]`` of ids ``[B, T]`` or of ``input_embeddings``."""
        return self.language_model(inputs, cache, input_embeddings)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """The decoder's weights, whose names are the same in source and converted checkpoints."""
        return {name: value for name, value in weights.items() if name.startswith(PREFIX)}

    def quant_predicate(self, path: str, module: nn.Module) -> bool:
        """Quantise the same layers as mlx-vlm's converter: all but the token embeddings."""
        return "embed_tokens" not in path

    def shard(self, group: mx.distributed.Group | None = None) -> None:
        """Split attention heads and MLP over ``group`` (tensor parallelism), in place."""
        self.language_model.shard(group)

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's layers, for mlx-lm's caches."""
        return self.language_model.layers
