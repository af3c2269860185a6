"""The decoder: Llama or Mistral from mlx-vlm's Llama blocks, with mlx-vlm's interface.

Papers: https://arxiv.org/abs/2307.09288 (Llama 2), https://arxiv.org/abs/2310.06825 (Mistral).
Reference: transformers' ``LlamaForCausalLM`` and ``MistralForCausalLM``.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..base import LanguageModelOutput, cache_position_offset, create_attention_mask
from ..llama.language import LlamaModel
from ..llama.language import Model as LlamaForCausalLM
from .linear import replace_linears
from .text_config import TextConfig

# Prompts up to this length are computed in one pass: steps would save little memory.
ONE_PASS_TOKENS = 512


def _padding_mask(mask: mx.array, window: int | None) -> mx.array:
    """Causal mask ``[B, 1, T, T]`` that hides padding; every token still sees itself."""
    positions = mx.arange(mask.shape[1])
    distance = positions[:, None] - positions
    causal = distance >= 0
    if window is not None:
        causal = causal & (distance < window)
    return (causal & (mask.astype(mx.bool_)[:, None, None, :])) | (distance == 0)


class DecoderModel(LlamaModel):
    """``LlamaModel`` with Mistral's sliding window and taps for speculative drafters."""

    def attention_mask(self, h: mx.array, cache: Any | None, mask: mx.array | None) -> Any:
        """The mask of ``scaled_dot_product_attention`` for ``h`` ``[B, T, D]``.

        The window only matters for sequences longer than the window; up to that length the
        cheaper causal mask is equivalent.
        """
        if cache is None and mask is not None:
            return _padding_mask(mask, self.sliding_window)
        window = self.sliding_window
        if window is not None and cache_position_offset(cache) + h.shape[1] <= window:
            window = None
        return create_attention_mask(h, cache, window_size=window)

    def __call__(
        self,
        inputs: mx.array,
        cache: list | None = None,
        inputs_embeds: mx.array | None = None,
        mask: mx.array | None = None,
        capture_layer_ids: list[int] | None = None,
        hidden_states: list[mx.array] | None = None,
    ) -> mx.array:
        h = self.embed_tokens(inputs) if inputs_embeds is None else inputs_embeds
        if cache is None:
            cache = [None] * len(self.layers)
        attention_mask = self.attention_mask(h, cache[0], mask)
        for index, (layer, layer_cache) in enumerate(zip(self.layers, cache)):
            h = layer(h, attention_mask, layer_cache)
            if capture_layer_ids is not None and index in capture_layer_ids:
                hidden_states.append(h)
        return self.norm(h)


class LanguageModel(nn.Module):
    """Decoder and output head.

    It has no ``make_cache``, so that ``--max-kv-size`` keeps its meaning, and no ``sanitize``,
    because mlx-vlm's loader would build a second copy of the decoder for it.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.model_type = config.model_type
        self.model = DecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        replace_linears(self)

    def engine_logits(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: list | None,
        logits_to_keep: int,
    ) -> mx.array | None:
        """Logits from an accelerated forward pass; None if it does not support this pass.

        There is none in plain MLX. A plug-in may replace this method of the class with one that
        computes the same as ``__call__`` and fills ``cache`` in the same way.
        """
        return None

    def engine_hidden_states(
        self, inputs_embeds: mx.array, is_causal: bool, kept: slice = slice(None)
    ) -> mx.array | None:
        """Hidden states of whole sequences from an accelerated pass; None where it has none.

        As ``engine_logits``: there is none in plain MLX.

        Args:
            inputs_embeds: ``[B, T, hidden_size]``.
            is_causal: whether a token sees only those before it and itself.
            kept: tokens of each sequence whose hidden states are needed.

        Returns:
            ``[B, kept, hidden_size]`` after the final norm, from a pass without a cache.
        """
        return None

    def __call__(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None = None,
        mask: mx.array | None = None,
        cache: list | None = None,
        capture_layer_ids: list[int] | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> LanguageModelOutput:
        """Logits of the next token at each position.

        Args:
            inputs: token ids ``[B, T]``.
            inputs_embeds: ``[B, T, hidden_size]``, used instead of the ids' embeddings.
            mask: ``[B, T]``, 1 for tokens and 0 for padding; read only without a cache
                (a cache stores its padding).
            cache: one key-value cache per layer.
            capture_layer_ids: layers whose outputs are returned in ``hidden_states``.
            logits_to_keep: number of last positions that get logits; 0 for all.
            kwargs: mlx-vlm's settings for other architectures, ignored.

        Returns:
            ``logits`` ``[B, T or logits_to_keep, vocab_size]`` and ``hidden_states``.
        """
        if capture_layer_ids is None:
            logits = self.engine_logits(inputs, inputs_embeds, cache, logits_to_keep)
            if logits is not None:
                return LanguageModelOutput(logits=logits)
        hidden_states = [] if capture_layer_ids is not None else None
        h = self.model(inputs, cache, inputs_embeds, mask, capture_layer_ids, hidden_states)
        logits = self.lm_head(h[:, -logits_to_keep:])
        return LanguageModelOutput(logits=logits, hidden_states=hidden_states)

    def chunked_prefill_policy(
        self,
        *,
        inputs_embeds: mx.array,
        prompt_cache: list | None = None,
        draft_model: nn.Module | None = None,
        **kwargs: Any,
    ) -> bool:
        """Whether mlx-vlm computes a prompt in steps, and then its last token by itself.

        That token needs one more pass over all weights before the answer starts; a picture and a
        question are short enough to be computed together with it. While the prompts of a batch are
        not known yet (no ``prompt_cache``), it keeps its steps.
        """
        is_short = prompt_cache is not None and inputs_embeds.shape[1] <= ONE_PASS_TOKENS
        return draft_model is None and not is_short

    def rollback_speculative_cache(
        self, caches: list, transaction: Any, accepted: Any, block_size: int
    ) -> int:
        """Drop the key-values of drafted tokens that were not accepted."""
        from ...speculative.cache_state import rollback_speculative_cache

        return rollback_speculative_cache(caches, transaction, accepted, block_size)

    def shard(self, group: mx.distributed.Group | None = None) -> None:
        """Split attention heads and MLP over ``group`` (tensor parallelism), in place.

        Raises:
            ValueError: if the key-value heads cannot be divided by the group's size.
        """
        group = group or mx.distributed.init()
        if self.n_kv_heads % group.size():
            raise ValueError(
                f"The decoder has {self.n_kv_heads} key-value heads, which cannot be divided over "
                f"{group.size()} processes; start a number that divides {self.n_kv_heads}"
            )
        LlamaForCausalLM.shard(self, group)

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's layers, for mlx-vlm's caches."""
        return self.model.layers

    @property
    def head_dim(self) -> int:
        """Width of a head, for mlx-vlm's caches."""
        return self.config.head_dim

    @property
    def n_kv_heads(self) -> int:
        """Number of key-value heads, for mlx-vlm's caches."""
        return self.config.num_key_value_heads
