"""The training loss: the answers' cross entropy, and an auxiliary loss of the towers.

The published towers are pretrained; these start from random weights, and learn shapes
slowly from questions alone. So each tower also learns, through a linear layer that is
discarded afterwards, to predict the shape and colour at every patch and the position of
that shape's centre.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path
from mlx_vlm.models.moxin import Model

from .dataset import Batch, normalise

PATCH_WEIGHT = 0.25
_LABELS = 4
# Larger than any label.
_CLASSES = 32


def _start(path: str, value: mx.array) -> mx.array:
    """Random values instead of a new model's zeros, and smaller token embeddings."""
    if path.endswith(("pos_embed", "cls_token", "reg_token")):
        return 0.2 * mx.random.normal(value.shape)
    if path.endswith("embed_tokens.weight"):
        return 0.05 * mx.random.normal(value.shape)
    return value


def answer_losses(
    model: Model, visual_tokens: mx.array, batch: Batch
) -> tuple[mx.array, mx.array, mx.array]:
    """The model's prediction of the token after each position of ``batch``.

    Args:
        visual_tokens: the pictures' ``[P, N, D]``.

    Returns:
        Cross entropy, whether the likeliest token is right, and whether it is part of
        an answer: each ``[B, T - 1]``.
    """
    ids = mx.array(batch.ids)
    visual_tokens = mx.repeat(visual_tokens, len(batch.ids) // len(batch.pixels), axis=0)
    logits = model(ids[:, :-1], visual_tokens, cached_image_features=visual_tokens).logits
    targets = ids[:, 1:]
    losses = nn.losses.cross_entropy(logits, targets)
    return losses, logits.argmax(-1) == targets, mx.array(batch.answers[:, 1:])


class Learner(nn.Module):
    """A model with random weights, and the linear layers of the towers' auxiliary loss."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model
        sizes = model.config.vision_config
        self.dino_patches = nn.Linear(sizes.dino.hidden_size, _LABELS * _CLASSES)
        self.siglip_patches = nn.Linear(sizes.siglip.hidden_size, _LABELS * _CLASSES)
        model.update(tree_map_with_path(_start, model.parameters()))

    def losses(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """Mean cross entropy of the answers' tokens, and that of the patches' classes."""
        features = self.model.vision_tower(normalise(mx.array(batch.pixels)))
        visual_tokens = self.model.multi_modal_projector(features)
        losses, _, is_answer = answer_losses(self.model, visual_tokens, batch)
        answers = (losses * is_answer).sum() / is_answer.sum()
        return answers, self.patch_loss(features, mx.array(batch.patches))

    def patch_loss(self, features: mx.array, labels: mx.array) -> mx.array:
        """Cross entropy of the patches' classes, summed over labels and towers.

        Args:
            features: of both towers, ``[P, N, D]``.
            labels: ``[P, N, 4]``.
        """
        dino, siglip = mx.split(features, [self.dino_patches.weight.shape[1]], axis=-1)
        patches = mx.array(0.0)
        for logits in (self.dino_patches(dino), self.siglip_patches(siglip)):
            logits = logits.reshape(*labels.shape, _CLASSES)
            patches += nn.losses.cross_entropy(logits, labels).mean(axis=(0, 1)).sum()
        return patches


def answers_right(model: Model, batch: Batch) -> tuple[float, float]:
    """Mean loss of the answers' tokens, and the share of answers that are right as a whole.

    Every token of an answer, its ``</s>`` included, is the likeliest one after those
    before it exactly if greedy decoding gives that answer.
    """
    visual_tokens = model.encode_image(normalise(mx.array(batch.pixels)))
    losses, hits, is_answer = answer_losses(model, visual_tokens, batch)
    loss = (losses * is_answer).sum() / is_answer.sum()
    return loss.item(), (hits | ~is_answer).all(axis=1).mean().item()
