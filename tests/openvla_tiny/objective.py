"""The training loss: the actions' cross entropy, and the towers' auxiliary loss.

Several instructions belong to each picture. Their common part, the picture and the prompts' first
words, is computed once; each instruction attends to its keys and values.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx_vlm.models.moxin import Model
from moxin_tiny.dataset import normalise

from .dataset import ANSWER_TOKENS, Batch
from .lesson import Lesson


class _Shared:
    """Keys and values of a picture's tokens; with ``rows``, they come before each row's."""

    def __init__(self):
        self.offset = 0
        self.rows = 0
        self.keys = self.values = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if not self.rows:
            self.keys, self.values = keys, values
            return keys, values
        pairs = (self.keys, keys), (self.values, values)
        return tuple(mx.concatenate([mx.repeat(a, self.rows, axis=0), b], 2) for a, b in pairs)


def answer_logits(model: Model, features: mx.array, start: mx.array, batch: Batch) -> mx.array:
    """Logits of the actions' tokens and their ``</s>``, ``[B, 8, V]`` float32.

    Args:
        features: of the towers, ``[P, N, D]``.
        start: ids that all rows start with, as ``Encoder.start``.
    """
    decoder = model.language_model.model
    visual_tokens = model.multi_modal_projector(features)
    pictures, count, _ = visual_tokens.shape
    words = mx.broadcast_to(start, (pictures, start.size))
    words = decoder.embed_tokens(mx.concatenate([words[:, :1], words[:, 1 + count :]], axis=1))
    h = mx.concatenate([words[:, :1], visual_tokens, words[:, 1:]], axis=1)
    caches = [_Shared() for _ in decoder.layers]
    for layer, cache in zip(decoder.layers, caches):
        h = layer(h, "causal", cache)
        cache.offset, cache.rows = start.size, len(batch.ids) // pictures
    h = decoder.embed_tokens(batch.ids[:, :-1])
    for layer, cache in zip(decoder.layers, caches):
        h = layer(h, "causal", cache)
    places = (batch.starts - 1)[:, None] + mx.arange(ANSWER_TOKENS)
    h = decoder.norm(mx.take_along_axis(h, places[..., None], axis=1))
    return model.language_model.lm_head(h).astype(mx.float32)


def answers(batch: Batch) -> mx.array:
    """Ids of the actions' tokens and their ``</s>``, ``[B, 8]``."""
    places = batch.starts[:, None] + mx.arange(ANSWER_TOKENS)
    return mx.take_along_axis(batch.ids, places, axis=1)


class ActionLearner(nn.Module):
    """A model, and the layers of the towers' auxiliary loss."""

    def __init__(self, model: Model, start: list[int]):
        super().__init__()
        self.model = model
        self.lesson = Lesson(model)
        self._start = mx.array(start)

    def features(self, batch: Batch) -> mx.array:
        """The towers' features of the pictures, ``[P, N, D]``."""
        pixels = normalise(batch.pixels).astype(self.lesson.dino.weight.dtype)
        return self.model.vision_tower(pixels)

    def losses(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """Mean cross entropy of the actions' tokens, and the auxiliary loss."""
        features = self.features(batch)
        logits = answer_logits(self.model, features, self._start, batch)
        loss = nn.losses.cross_entropy(logits, answers(batch)).mean()
        return loss, self.lesson(features, batch.patches)

    def validate(self, batch: Batch) -> mx.array:
        """Mean loss of the actions' tokens, share of them and of whole actions that are right."""
        logits = answer_logits(self.model, self.features(batch), self._start, batch)
        targets = answers(batch)
        hits = logits.argmax(-1) == targets
        loss = nn.losses.cross_entropy(logits, targets).mean()
        return mx.stack([loss, hits.mean(), hits.all(axis=1).mean()])
