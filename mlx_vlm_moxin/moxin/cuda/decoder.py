"""``LanguageModel.engine_logits`` and ``engine_hidden_states``: the decoder's passes by kernels."""

import logging
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .decoder_layers import TRAINING, read_layers
from .decoder_sizes import DecoderSizes, read_sizes
from .engine_table import EngineTable
from .errors import UnsupportedError, require
from .fallback import or_none
from .fused_batch import FusedBatch
from .fused_prompt import FusedPrompt
from .fused_step import FusedStep
from .layerwise import Layerwise

logger = logging.getLogger(__name__)


class DecoderEngine:
    """The passes of one ``LanguageModel``. It references the model's submodules only."""

    def __init__(self, decoder: nn.Module, head: nn.Module):
        self._decoder, self._head = decoder, head
        self._step, self._prompt = FusedStep(decoder, head), FusedPrompt(decoder, head)
        self._batch, self._layerwise = FusedBatch(decoder, head), Layerwise(decoder, head)
        self._sizes: DecoderSizes | None = None
        self._is_checked = False

    def holds(self, decoder: nn.Module, head: nn.Module) -> bool:
        """Whether these are still the parts of the model."""
        return self._decoder is decoder and self._head is head

    def logits(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: list | None,
        logits_to_keep: int,
    ) -> mx.array | None:
        """As the module's ``logits``, for this engine's model.

        Support is checked again at each prompt, because modules may have been quantised or given
        adapters since; not per token.
        """
        arguments = inputs, inputs_embeds, cache, logits_to_keep
        is_prompt = inputs.shape[1] > 1
        return self._try(lambda sizes: self._logits(*arguments, sizes), is_prompt)

    def hidden_states(self, x: mx.array, is_causal: bool, kept: slice) -> mx.array | None:
        """As ``hidden_states``."""
        run = self._layerwise.hidden_states
        return self._try(lambda sizes: run(x, is_causal, kept, sizes), True)

    def _try(
        self, run: Callable[[DecoderSizes], mx.array | None], is_prompt: bool
    ) -> mx.array | None:
        """The result of ``run`` for the decoder's sizes; None if kernels do not support it."""
        try:
            require(not self._decoder.training, TRAINING)
            if is_prompt or not self._is_checked:
                self._sizes, self._is_checked = None, True
                self._sizes = read_sizes(self._decoder)
            return None if self._sizes is None else run(self._sizes)
        except UnsupportedError as error:
            logger.debug("MLX computes the decoder: %s", error)
            self._sizes = None
            return None

    def _logits(
        self,
        inputs: mx.array,
        inputs_embeds: mx.array | None,
        cache: list | None,
        logits_to_keep: int,
        sizes: DecoderSizes,
    ) -> mx.array | None:
        arguments: Any = inputs, inputs_embeds, cache
        # mlx-vlm computes the ids on another stream. Submitting them first avoids a cross-stream
        # wait of about 1 ms. The GPU begins with embeddings while Python records the first layers.
        used = inputs if inputs_embeds is None else inputs_embeds
        if self._step.supports(*arguments, sizes):
            mx.async_eval(used)
            return self._step(inputs, cache, sizes)
        for run in (self._prompt, self._batch, self._layerwise):
            if run.supports(*arguments, sizes):
                mx.async_eval(used)
                return run(*arguments, logits_to_keep, sizes)
        if inputs.shape[1] > 1:
            read_layers(self._decoder, sizes)  # for the tokens that follow
        return None


engines: EngineTable[DecoderEngine] = EngineTable()


def logits(
    model: nn.Module,
    inputs: mx.array,
    inputs_embeds: mx.array | None,
    cache: list | None,
    logits_to_keep: int,
) -> mx.array | None:
    """Logits of ``model``, a ``LanguageModel``, by kernels; fills ``cache``.

    Args:
        inputs: token ids ``[B, T]``.
        inputs_embeds: ``[B, T, hidden_size]``, used instead of the ids' embeddings.
        cache: one key-value cache per layer.
        logits_to_keep: number of last positions that get logits; 0 for all.

    Returns:
        ``[B, T or logits_to_keep, vocab_size]``; None, with ``cache`` as it was, if the kernels do
        not support this pass or this model.
    """
    arguments = inputs, inputs_embeds, cache, logits_to_keep
    return _run(model, lambda engine: engine.logits(*arguments))


def hidden_states(
    model: nn.Module, inputs_embeds: mx.array, is_causal: bool, kept: slice = slice(None)
) -> mx.array | None:
    """Hidden states of ``model``, a ``LanguageModel``, by kernels, without a cache.

    Args:
        inputs_embeds: whole sequences ``[B, T, hidden_size]``.
        is_causal: whether a token sees only those before it and itself.
        kept: tokens of each sequence whose hidden states are needed.

    Returns:
        ``[B, kept, hidden_size]`` after the final norm; None if the kernels do not support this
        pass or this model.
    """
    return _run(model, lambda engine: engine.hidden_states(inputs_embeds, is_causal, kept))


@or_none("MLX computes the decoder")
def _run(model: nn.Module, compute: Callable[[DecoderEngine], mx.array | None]) -> mx.array | None:
    """The result of ``compute`` for the model's engine; None if the kernels cannot be used."""
    parts = model.model, model.lm_head
    engine = engines.find(model, lambda found: found.holds(*parts), lambda: DecoderEngine(*parts))
    return compute(engine)
