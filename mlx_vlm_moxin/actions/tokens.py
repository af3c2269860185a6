"""Actions as tokens: each dimension in 256 equal bins, which are the last ids of the vocabulary.

Reference: ``prismatic/vla/action_tokenizer.py`` and ``prismatic/extern/hf/modeling_prismatic.py``
of openvla/openvla. They divide [-1, 1] at 256 points, which gives 255 intervals: the two lowest
ids both decode to the last one.
"""

from typing import Any

import numpy as np

NUM_BINS = 256
# Number of ids that Prismatic's vocabularies have more than their tokenizers.
VOCABULARY_PADDING = 64


class ActionTokenizer:
    """Between normalised actions and token ids.

    Args:
        vocab_size: number of the tokenizer's tokens, 32,000 for Llama 2 and Mistral; the last
            ``num_bins`` ids of them are the actions'.
        num_bins: of each dimension.
    """

    def __init__(self, vocab_size: int, num_bins: int = NUM_BINS):
        self.vocab_size = vocab_size
        self.num_bins = num_bins
        self._edges = np.linspace(-1.0, 1.0, num_bins)
        self._centers = (self._edges[:-1] + self._edges[1:]) / 2.0

    @classmethod
    def of(cls, config: Any) -> "ActionTokenizer":
        """For the vocabulary and the bins of a model's ``config``.

        Raises:
            ValueError: if the vocabulary has not as many ids.
        """
        padding = config.pad_to_multiple_of or VOCABULARY_PADDING
        num_bins, vocab_size = config.n_action_bins or NUM_BINS, config.text_config.vocab_size
        if vocab_size - padding < num_bins:
            raise ValueError(
                f"config.json: a vocabulary of {vocab_size} ids has no {num_bins} for actions "
                f"(n_action_bins) below the last {padding} (pad_to_multiple_of)"
            )
        return cls(vocab_size - padding, num_bins)

    @property
    def ids(self) -> range:
        """The ids of actions; the last one is the lowest action."""
        return range(self.vocab_size - self.num_bins, self.vocab_size)

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Ids (int64) of normalised ``actions``; values outside [-1, 1] are clipped."""
        bins = np.digitize(np.clip(np.asarray(actions, np.float64), -1.0, 1.0), self._edges)
        return self.vocab_size - bins

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """The centres (float64) of the bins of ``ids``; other ids count as the nearest bin."""
        bins = self.vocab_size - np.asarray(ids, np.int64) - 1
        return self._centers[np.clip(bins, 0, self.num_bins - 2)]
