"""The right next action, from a picture's contents and the instruction alone.

The expert keeps no memory: it is what a model can learn from single pictures.
"""

from dataclasses import replace
from random import Random

import numpy as np

from .table import FINGER, LOW, STEP, STEP_Z, Table
from .tasks import Task, as_action

# Distance along each axis within which one step reaches a place; the gripper moves down in that
# step, and up when it is farther away.
NEAR = 0.05
# Moves are multiples of this; finer ones would not be visible in the picture.
GRAIN = 0.01
# Distance from the item's centre at which pushing starts.
PUSH_FROM = 0.155


def _towards(table: Table, x: float, y: float) -> tuple[float, float]:
    """Changes of x and y of one step towards a place, each axis independently."""
    change = np.clip(np.array([x - table.x, y - table.y]), -STEP, STEP)
    dx, dy = (GRAIN * np.round(change / GRAIN)).tolist()
    return dx, dy


def _is_near(table: Table, x: float, y: float) -> bool:
    return max(abs(x - table.x), abs(y - table.y)) < NEAR


def _approach(table: Table, x: float, y: float, before: float, after: float) -> np.ndarray:
    """Go to a place from above; the gripper is ``before`` on the way and ``after`` on arrival."""
    dx, dy = _towards(table, x, y)
    if not _is_near(table, x, y):
        return as_action(dx, dy, STEP_Z, before)
    return as_action(dx, dy, -STEP_Z, after if table.z - STEP_Z < LOW else before)


def _pick_and_place(table: Table, task: Task) -> np.ndarray:
    item = table.items[task.item]
    if table.held not in (None, task.item):
        return as_action(0, 0, 0, 1)
    if table.held is not None:
        return _approach(table, *task.target(table), 0, 1)
    # A closed gripper must open before it can pick up anything.
    return _approach(table, item.x, item.y, 1, 0 if table.is_open else 1)


def _push(table: Table, task: Task) -> np.ndarray:
    item = table.items[task.item]
    if table.held is not None:
        return as_action(0, 0, 0, 1)
    direction = -1 if task.kind == "left" else 1
    # Distance of the gripper from the item, on the side that it pushes from.
    gap = (item.x - table.x) * direction
    if table.z < LOW:
        # An open gripper would pick the item up as it closes.
        is_beside = abs(item.y - table.y) < NEAR and 0.05 < gap < PUSH_FROM + 0.06
        if is_beside and not table.is_open:
            return as_action(direction * STEP, _towards(table, item.x, item.y)[1], -STEP_Z, 0)
        return as_action(0, 0, STEP_Z, 0)
    return _approach(table, item.x - direction * PUSH_FROM, item.y, 0, 0)


def act(table: Table, task: Task) -> np.ndarray:
    """The expert's action ``[7]``: changes of x, y and z, turns (0), gripper (1 open)."""
    if task.kind == "move":
        item = table.items[task.item]
        return as_action(*_towards(table, item.x, item.y), 0, 1)
    if task.kind in ("left", "right"):
        return _push(table, task)
    return _pick_and_place(table, task)


def disturb(table: Table, task: Task, rng: Random) -> Table:
    """A table as it may be at some time during ``task``, also after mistakes.

    Training on such tables instead of the expert's own paths teaches a model to recover.
    """
    item = table.items[task.item]
    is_carrying = task.kind in ("beside", "into") and rng.random() < 0.5
    if is_carrying:
        table = replace(table, held=task.item, is_open=False)
        places = [task.target(table), (item.x, item.y)]
    else:
        is_open = rng.random() < (0.2 if task.kind in ("left", "right") else 0.9)
        table = replace(table, is_open=is_open)
        places = [(item.x, item.y)]
    if task.kind in ("left", "right"):
        side = 1 if task.kind == "left" else -1
        offsets = (PUSH_FROM, PUSH_FROM, item.radius + FINGER, 0)
        places = [(item.x + side * offset, item.y) for offset in offsets]
    choice = rng.random()
    x, y = table.x, table.y
    if choice < 0.6:
        x, y = rng.choice(places)
        spread = rng.choice((0.015, 0.04, 0.12))
        x, y = x + rng.gauss(0, spread), y + rng.gauss(0, spread)
    x, y = float(np.clip(x, 0, 1)), float(np.clip(y, 0, 1))
    z = rng.choice((0.0, 0.0, 0.5, 1.0)) if choice < 0.6 else rng.choice((0.0, 0.5, 1.0, 1.0, 1.0))
    table = replace(table, x=x, y=y, z=z)
    return table.moved(task.item, x, y) if table.held is not None else table
