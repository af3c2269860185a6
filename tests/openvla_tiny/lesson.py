"""The towers' auxiliary loss: the thing at each patch, and its position from the gripper.

Moxin-tiny's towers also learn to predict the shape and the colour at each patch. Here they also
learn the distance of each thing from the gripper, and the gripper's state, on which every action
depends. The linear layers of this loss are discarded after training.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_vlm.models.moxin import Model
from moxin_tiny.scenes import COLOURS, SHAPES

from .architecture import NUM_PATCHES
from .drawing import gripper_state
from .expert import GRAIN
from .table import Table

# Shape, colour, x and y from the gripper; of the whole picture: the gripper's x, y, z and state.
LABELS = 8
# Which item an instruction means hangs on its shape, what the towers find hardest, and its colour.
WEIGHTS = (4, 2, 1, 1, 1, 1, 1, 1)
CLASSES = 64
# Largest distance of a patch's centre from the thing that it shows; half a diagonal is 0.088.
RADIUS = 0.09
_FAR = 0.3
_SIDE = int(NUM_PATCHES**0.5)
_CENTRES = (np.arange(_SIDE) + 0.5) / _SIDE
_BOX = (len(SHAPES), len(COLOURS))


def _offset(value: float) -> int:
    return round((min(max(value, -_FAR), _FAR) + _FAR) / GRAIN)


def colour_index(colour: str) -> int:
    """Of a named colour; then the box, then all the colours without a name."""
    return tuple(COLOURS).index(colour) if colour in COLOURS else len(COLOURS) + 1


def patch_labels(table: Table) -> np.ndarray:
    """``[N, 8]`` int32, see ``LABELS``; a thing's labels count from 1, and 0 is background."""
    labels = np.zeros((_SIDE, _SIDE, LABELS), np.int32)
    gripper = int(63 * table.x), int(63 * table.y), round(2 * table.z), gripper_state(table)
    labels[..., 4:] = gripper
    things = [(*_BOX, *table.box)]
    things += [
        (SHAPES.index(item.shape), colour_index(item.colour), item.x, item.y)
        for index, item in enumerate(table.items)
        if index != table.held
    ]
    for shape, colour, x, y in things:
        shown = np.hypot(_CENTRES[None, :] - x, _CENTRES[:, None] - y) < RADIUS
        label = shape, colour, _offset(x - table.x), _offset(y - table.y)
        labels[shown, :4] = [1 + value for value in label]
    return labels.reshape(NUM_PATCHES, LABELS)


class Lesson(nn.Module):
    """A linear layer for each tower's features."""

    def __init__(self, model: Model):
        super().__init__()
        sizes = model.config.vision_config
        self.dino = nn.Linear(sizes.dino.hidden_size, LABELS * CLASSES)
        self.siglip = nn.Linear(sizes.siglip.hidden_size, LABELS * CLASSES)

    def __call__(self, features: mx.array, labels: mx.array) -> mx.array:
        """Weighted mean cross entropy of the labels.

        Args:
            features: of both towers, ``[P, N, D]``.
            labels: ``[P, N, LABELS]``.
        """
        parts = mx.split(features, [self.dino.weight.shape[1]], axis=-1)
        losses = []
        for layer, part in zip((self.dino, self.siglip), parts):
            logits = layer(part).reshape(*labels.shape, CLASSES).astype(mx.float32)
            losses.append((nn.losses.cross_entropy(logits, labels) * mx.array(WEIGHTS)).mean())
        return (losses[0] + losses[1]) / 2
