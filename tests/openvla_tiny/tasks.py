"""The gripper's tasks, their wordings, and when each is done."""

import random
from dataclasses import dataclass

import numpy as np

from .table import Table

KINDS = ("move", "beside", "into", "left", "right")
# Number of actions after which an episode ends without success.
MAX_STEPS = 40
REACHED = 0.06
# Distance of "beside" to the left or the right of the other item's centre, and its tolerance.
# No two items are this close to each other at the start (``layouts.GAP``).
BESIDE_OFFSET = 0.19
BESIDE = 0.055
INSIDE = 0.07
PUSHED = 0.12
# Share of the names in training that leave the colour out, if no other item has the shape.
SHAPE_ALONE = 0.2
# Training has all but the last wording of each kind, and every word of that one.
WORDINGS = {
    "move": (
        "move to the {item}",
        "go to the {item}",
        "reach the {item}",
        "move the gripper to the {item}",
        "go with the gripper to the {item}",
    ),
    "beside": (
        "pick up the {item} and put it beside the {other}",
        "put the {item} beside the {other}",
        "place the {item} beside the {other}",
        "pick the {item} up and place it beside the {other}",
    ),
    "into": (
        "pick up the {item} and put it into the box",
        "put the {item} into the box",
        "place the {item} into the box with the gripper",
        "pick the {item} up and place it into the box",
    ),
    "left": (
        "push the {item} left",
        "push the {item} to the left",
        "slide the {item} left",
        "slide the {item} to the left",
    ),
    "right": (
        "push the {item} right",
        "push the {item} to the right",
        "slide the {item} right",
        "slide the {item} to the right",
    ),
}


@dataclass(frozen=True)
class Task:
    """An instruction about items of a table.

    Attributes:
        kind: one of ``KINDS``.
        item, other: indices of the items that it names (``other`` only for "beside").
        start: the item's initial place.
        instruction: the words.
    """

    kind: str
    item: int
    other: int
    start: tuple[float, float]
    instruction: str

    def target(self, table: Table) -> tuple[float, float]:
        """The place where the item must be put down ("beside" and "into")."""
        if self.kind == "into":
            return table.box
        item, other = table.items[self.item], table.items[self.other]
        # On the side where it already is.
        return other.x + (BESIDE_OFFSET if item.x >= other.x else -BESIDE_OFFSET), other.y

    def is_done(self, table: Table) -> bool:
        """Whether the task is done."""
        item = table.items[self.item]
        if self.kind == "move":
            return item.distance(table.x, table.y) < REACHED
        if self.kind == "left":
            return self.start[0] - item.x >= PUSHED
        if self.kind == "right":
            return item.x - self.start[0] >= PUSHED
        if table.held is not None or not table.is_open:
            return False
        tolerance = BESIDE if self.kind == "beside" else INSIDE
        return item.distance(*self.target(table)) < tolerance


def _name(table: Table, index: int, split: str, rng: random.Random) -> str:
    """What an instruction calls an item: colour and shape, in training at times its shape alone."""
    item = table.items[index]
    if split != "train" or rng.random() >= SHAPE_ALONE:
        return item.name
    is_unique = [each.shape for each in table.items].count(item.shape) == 1
    return item.shape if is_unique else item.name


def make_task(
    kind: str,
    table: Table,
    split: str,
    rng: random.Random,
    wording: int | None = None,
    item: int = 0,
) -> Task:
    """A task of a kind about an item of a table, the first one by default.

    Args:
        wording: index into ``WORDINGS``; None for a random one of the split. The test set has
            all of them, training all but the last one.
    """
    texts = WORDINGS[kind]
    if wording is None:
        wording = rng.randrange(len(texts) - (split == "train"))
    other = rng.choice([index for index in table.named if index != item])
    names = [_name(table, index, split, rng) for index in (item, other)]
    text = texts[wording].format(item=names[0], other=names[1])
    return Task(kind, item, other, (table.items[item].x, table.items[item].y), text)


def as_action(dx: float, dy: float, dz: float, gripper: float) -> np.ndarray:
    """``[7]`` float64; turns are not used."""
    return np.array([dx, dy, dz, 0, 0, 0, gripper])
