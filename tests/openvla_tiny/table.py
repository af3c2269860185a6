"""A table seen from above, with things on it and a gripper over it.

Positions are fractions of the picture's side, x to the right and y downwards; the gripper's
height ``z`` goes from 0 (on the table) to 1. A table is a value: a step gives a new one.
"""

from dataclasses import dataclass, replace

import numpy as np
from moxin_tiny.scenes import COLOURS

# Largest move of the gripper in one step, along each axis of the table and in height.
STEP = 0.08
STEP_Z = 0.5
# Below this height the gripper touches things.
LOW = 0.3
# Largest distance from a thing's centre at which closing the gripper picks it up.
GRASP = 0.06
# Half the gripper's width when it pushes.
FINGER = 0.03
# OpenVLA's actions: x, y, z, roll, pitch, yaw, gripper (1 open, 0 closed).
ACTION_DIM = 7
GRIPPER = 6


@dataclass(frozen=True)
class Item:
    """A thing on the table; ``radius`` is a fraction of the picture's side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    mix: float
    angle: float

    @property
    def name(self) -> str:
        """Its name in instructions."""
        return f"{self.colour} {self.shape}"

    def distance(self, x: float, y: float) -> float:
        """Distance of its centre from a point."""
        return float(np.hypot(self.x - x, self.y - y))


@dataclass(frozen=True)
class Table:
    """The whole scene.

    Attributes:
        items: the things that can be moved.
        box: centre of the box, which cannot be moved.
        x, y, z: the gripper's place.
        is_open: whether the gripper is open.
        held: index of the item that the gripper holds; None if it holds none.
        tint, texture, texture_seed: the background, as in ``moxin_tiny.scenes``.
    """

    items: tuple[Item, ...]
    box: tuple[float, float]
    x: float
    y: float
    z: float
    is_open: bool
    held: int | None
    tint: str
    texture: str
    texture_seed: int

    @property
    def named(self) -> list[int]:
        """Indices of the items that an instruction can be about."""
        return [index for index, item in enumerate(self.items) if item.colour in COLOURS]

    def moved(self, index: int, x: float, y: float) -> "Table":
        """The table with an item at another place."""
        items = list(self.items)
        items[index] = replace(items[index], x=x, y=y)
        return replace(self, items=tuple(items))


def _reached(value: float, change: float, limit: float) -> float:
    """``value`` after a change of at most ``limit``, kept in [0, 1]."""
    return float(np.clip(value + np.clip(change, -limit, limit), 0, 1))


def _push(table: Table, x: float, y: float) -> Table:
    """The table after a low gripper has moved to ``(x, y)`` and pushed what it touched."""
    for index, item in enumerate(table.items):
        reach = item.radius + FINGER
        if abs(item.y - y) >= reach or index == table.held:
            continue
        if table.x <= item.x and x > item.x - reach:
            table = table.moved(index, min(x + reach, 1.0), item.y)
        elif table.x > item.x and x < item.x + reach:
            table = table.moved(index, max(x - reach, 0.0), item.y)
    return table


def step(table: Table, action: np.ndarray) -> Table:
    """The table after an action.

    Args:
        action: ``[7]``: changes of x, y and z, three turns (without effect), and the gripper:
            open from 0.5 on, else closed.
    """
    x, y = _reached(table.x, action[0], STEP), _reached(table.y, action[1], STEP)
    if table.z < LOW and not table.is_open and table.held is None:
        table = _push(table, x, y)
    table = replace(table, x=x, y=y, z=_reached(table.z, action[2], STEP_Z))
    is_open = bool(action[GRIPPER] >= 0.5)
    if table.held is not None:
        table = table.moved(table.held, x, y)
    if is_open:
        return replace(table, is_open=True, held=None)
    if table.is_open and table.z < LOW:
        near = [(item.distance(x, y), index) for index, item in enumerate(table.items)]
        distance, index = min(near)
        if distance < GRASP:
            table = replace(table.moved(index, x, y), held=index)
    return replace(table, is_open=False)
