"""How far two models' next-token distributions differ on the same text."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np


def log_softmax(logits: mx.array) -> np.ndarray:
    """float32 log-probabilities ``[P, V]`` of ``logits`` ``[P, V]`` of any float dtype."""
    logits = logits.astype(mx.float32)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


@dataclass(frozen=True)
class Divergence:
    """Comparison of two models on one answer; every array is ``[P]``, one value per position.

    Attributes:
        kl: KL(source || result) in nats, at least 0; infinite where the result's logits
            are not finite.
        agrees: whether both models have the same most likely token.
        nll_increase: how much less likely, in nats, the result finds the answer's token.
        is_finite: whether all of the result's logits are finite.
    """

    kl: np.ndarray
    agrees: np.ndarray
    nll_increase: np.ndarray
    is_finite: np.ndarray

    @property
    def positions(self) -> int:
        """Number of compared positions."""
        return len(self.kl)

    @property
    def kl_mean(self) -> float:
        """Mean over the positions, in nats."""
        return float(self.kl.mean())

    @property
    def kl_max(self) -> float:
        """Maximum over the positions, in nats."""
        return float(self.kl.max())

    @property
    def top1_agreement(self) -> float:
        """Share of positions where both have the same most likely token, 0 to 1."""
        return float(self.agrees.mean())

    @property
    def perplexity_ratio(self) -> float:
        """The result's perplexity on the source's answers, divided by the source's perplexity."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.nll_increase.mean()))


def compare(source: np.ndarray, result: np.ndarray, tokens: Sequence[int]) -> Divergence:
    """Divergence of two models' log-probabilities.

    Args:
        source, result: log-probabilities ``[P, V]`` of the next token, float32.
        tokens: the ``P`` token ids of the answer, each predicted by its row.

    Raises:
        ValueError: if the vocabularies differ.
    """
    if source.shape != result.shape:
        raise ValueError(
            f"The result predicts {result.shape[-1]} tokens where the source predicts "
            f"{source.shape[-1]}: it was not converted from this source"
        )
    is_finite = np.isfinite(result).all(axis=-1)
    rows, chosen = np.arange(len(tokens)), np.asarray(tokens)
    difference = source.astype(np.float64) - result
    kl = (np.exp(source.astype(np.float64)) * difference).sum(axis=-1)
    return Divergence(
        # Where the distributions are equal, rounding can make the sum slightly negative.
        kl=np.where(is_finite, np.maximum(kl, 0.0), np.inf),
        agrees=is_finite & (source.argmax(axis=-1) == result.argmax(axis=-1)),
        nll_increase=np.where(is_finite, difference[rows, chosen], np.inf),
        is_finite=is_finite,
    )


def concatenate(parts: Sequence[Divergence]) -> Divergence:
    """Join the positions of several answers."""
    return Divergence(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in Divergence.__dataclass_fields__
        )
    )
