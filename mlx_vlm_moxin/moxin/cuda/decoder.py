"""``LanguageModel.engine_logits``: the decoder's forward pass by kernels."""

import logging
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from . import device
from .decoder_layers import TRAINING, read_layers
from .decoder_sizes import DecoderSizes, read_sizes
from .engine_table import EngineTable
from .errors import UnsupportedError, require
from .fused_prompt import FusedPrompt
from .fused_step import FusedStep
from .layerwise import Layerwise

logger = logging.getLogger(__name__)


class DecoderEngine:
    """The passes of one ``LanguageModel``. It refers to the model's submodules only."""

    def __init__(self, decoder: nn.Module, head: nn.Module):
        self._decoder, self._head = decoder, head
        self._step, self._prompt = FusedStep(decoder, head), FusedPrompt(decoder, head)
        self._layerwise = Layerwise(decoder, head)
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
        is_prompt = inputs.shape[1] > 1
        try:
            require(not self._decoder.training, TRAINING)
            if is_prompt or not self._is_checked:
                self._sizes, self._is_checked = None, True
                self._sizes = read_sizes(self._decoder)
            if self._sizes is None:
                return None
            return self._logits(inputs, inputs_embeds, cache, logits_to_keep, self._sizes)
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
        # wait of about 1 ms.
        if self._step.supports(*arguments, sizes):
            mx.async_eval(inputs)
            return self._step(inputs, cache, sizes)
        for run in (self._prompt, self._layerwise):
            if run.supports(*arguments, sizes):
                mx.async_eval(inputs)
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
    if not device.enabled():
        return None
    try:
        parts = model.model, model.lm_head
        engine = engines.find(
            model, lambda found: found.holds(*parts), lambda: DecoderEngine(*parts)
        )
        return engine.logits(inputs, inputs_embeds, cache, logits_to_keep)
    except RuntimeError as error:
        device.disable_after(error)
        return None
