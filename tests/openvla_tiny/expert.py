"""The right next action, from what a picture shows and the instruction alone.

The expert keeps no memory: it is what a model can learn from single pictures.
"""

from dataclasses import replace
from random import Random

import numpy as np

from .table import FINGER, LOW, STEP, STEP_Z, Table
from .tasks import Task, as_action

# Closer than this counts as over the place.
OVER = 0.02
# Farther than this, the gripper rises before it moves.
FAR = 0.06
HIGH = 0.75


def _towards(table: Table, x: float, y: float) -> tuple[float, float]:
    """Changes of x and y of one step on the straight line to a place."""
    dx, dy = x - table.x, y - table.y
    scale = min(1.0, STEP / max(abs(dx), abs(dy), 1e-9))
    return dx * scale, dy * scale


def _go(table: Table, x: float, y: float, gripper: float) -> np.ndarray | None:
    """Rise and move until the gripper is over a place; None once it is."""
    distance = np.hypot(x - table.x, y - table.y)
    if distance < OVER:
        return None
    if table.z < HIGH and distance > FAR:
        return as_action(0, 0, STEP_Z, gripper)
    return as_action(*_towards(table, x, y), 0, gripper)


def _lower(table: Table, gripper: float) -> np.ndarray | None:
    """Go down; None once the gripper is."""
    return as_action(0, 0, -STEP_Z, gripper) if table.z >= LOW else None


def _pick_and_place(table: Table, task: Task) -> np.ndarray:
    item = table.items[task.item]
    if table.held not in (None, task.item):
        return as_action(0, 0, 0, 1)
    if table.held is None:
        moving = _go(table, item.x, item.y, 1)
        if moving is None:
            moving = _lower(table, 1)
        return as_action(0, 0, 0, 0) if moving is None else moving
    moving = _go(table, *task.target(table), 0)
    if moving is None:
        moving = _lower(table, 0)
    return as_action(0, 0, 0, 1) if moving is None else moving


def _push(table: Table, task: Task) -> np.ndarray:
    item = table.items[task.item]
    direction = -1 if task.kind == "left" else 1
    reach = item.radius + FINGER
    # How far the gripper is from the item, on the side that it pushes from.
    gap = (item.x - table.x) * direction
    if table.z < LOW and abs(item.y - table.y) < 0.6 * reach and reach - 0.02 < gap < reach + 0.1:
        return as_action(direction * STEP, 0, 0, 0)
    moving = _go(table, item.x - direction * (reach + 0.03), item.y, 0)
    if moving is None:
        moving = _lower(table, 0)
    return as_action(0, 0, STEP_Z, 0) if moving is None else moving


def act(table: Table, task: Task) -> np.ndarray:
    """The expert's action ``[7]``: changes of x, y and z, turns (0), gripper (1 open)."""
    if task.kind == "move":
        moving = _go(table, table.items[task.item].x, table.items[task.item].y, 1)
        return as_action(0, 0, 0, 1) if moving is None else moving
    if task.kind in ("left", "right"):
        return _push(table, task)
    return _pick_and_place(table, task)


def disturb(table: Table, task: Task, rng: Random) -> Table:
    """A table as it may look at some time during ``task``, also after mistakes.

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
        side = (1 if task.kind == "left" else -1) * (item.radius + FINGER + 0.03)
        places = [(item.x + side, item.y), (item.x + side, item.y), (item.x, item.y)]
    choice = rng.random()
    x, y = table.x, table.y
    if choice < 0.6:
        x, y = rng.choice(places)
        spread = rng.choice((0.008, 0.03, 0.1))
        x, y = x + rng.gauss(0, spread), y + rng.gauss(0, spread)
    x, y = float(np.clip(x, 0, 1)), float(np.clip(y, 0, 1))
    z = rng.choice((0.0, 0.0, 0.5, 1.0)) if choice < 0.6 else rng.choice((0.0, 0.5, 1.0, 1.0, 1.0))
    table = replace(table, x=x, y=y, z=z)
    return table.moved(task.item, x, y) if table.held is not None else table
