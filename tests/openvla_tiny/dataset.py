"""Pictures, instructions and the expert's actions as arrays, made from seeds.

Training draws every picture afresh; none is seen twice. Several instructions go with each
picture, since the expert knows the next action for all of them.
"""

import random
from typing import NamedTuple

import numpy as np
from moxin_tiny.dataset import patch_labels, square_bytes
from moxin_tiny.texts import BOS_ID, EOS_ID, SPACE
from tokenizers import Tokenizer

from .actions import ActionEncoder
from .architecture import NUM_PATCHES
from .drawing import SIZE, draw, things
from .expert import act, disturb
from .layouts import make_table
from .table import Table
from .tasks import KINDS, Task, make_task
from .texts import prompt

# All rows have this length, which fits every instruction.
PROMPT_TOKENS = 40


class Batch(NamedTuple):
    """Pictures, and rows of instructions about them, the same number for each picture.

    Attributes:
        pixels: ``[P, S, S, 3]`` uint8, resized and not yet normalised.
        patches: ``[P, N, 4]`` int32: what lies under each patch (``moxin_tiny.dataset``).
        ids: ``[B, T]`` int32: ``<s>``, placeholders, prompt, action, ``</s>``, padding.
        actions: ``[B, T]`` bool, true at the actions' tokens and their ``</s>``.
    """

    pixels: np.ndarray
    patches: np.ndarray
    ids: np.ndarray
    actions: np.ndarray


def _tasks(table: Table, first: Task, count: int, rng: random.Random) -> list[Task]:
    """``first`` and other tasks for the same table, that a picture of it can belong to."""
    tasks = [first]
    while len(tasks) < count:
        if table.held is not None:
            kind, item = rng.choice(("move", "beside", "into", "into")), table.held
            item = item if kind != "move" else rng.randrange(len(table.items))
        else:
            kind, item = rng.choice(KINDS), rng.randrange(len(table.items))
        tasks.append(make_task(kind, table, "train", rng, item=item))
    return tasks


class Encoder:
    """Instructions and actions to token ids.

    Args:
        placeholder: id that stands for a visual token.
        pad: id of ``<PAD>``, the first one after the vocabulary proper.
    """

    def __init__(self, tokenizer: Tokenizer, placeholder: int, pad: int):
        self._tokenizer, self._pad = tokenizer, pad
        self._encode_action = ActionEncoder(pad)
        self._start = [BOS_ID] + [placeholder] * NUM_PATCHES
        self._space = tokenizer.token_to_id(SPACE)

    def row(self, instruction: str, action: np.ndarray) -> tuple[list[int], list[bool]]:
        """``ids`` and ``actions`` of one row of a :class:`Batch`."""
        text = self._tokenizer.encode(prompt(instruction), add_special_tokens=False).ids
        before = [*self._start, *text, self._space]
        answer = [*self._encode_action(action), EOS_ID]
        padding = NUM_PATCHES + PROMPT_TOKENS - len(before) - len(answer)
        mask = [False] * len(before) + [True] * len(answer) + [False] * padding
        return before + answer + [self._pad] * padding, mask


_worker: dict = {}


def start_worker(tokenizer: str, placeholder: int, pad: int) -> None:
    """Prepare a process that runs :func:`make_batch`."""
    _worker["encoder"] = Encoder(Tokenizer.from_str(tokenizer), placeholder, pad)


def make_batch(start: int, pictures: int, rows: int) -> Batch:
    """Tables ``start`` to ``start + pictures - 1`` of the training split.

    Args:
        rows: instructions for each picture.
    """
    squares, patches, ids, actions = [], [], [], []
    for index in range(start, start + pictures):
        table, rng = make_table("train", index)
        task = make_task(rng.choice(KINDS), table, "train", rng)
        table = disturb(table, task, rng)
        squares.append(square_bytes(draw(table)))
        patches.append(patch_labels(things(table), SIZE, SIZE))
        for each in _tasks(table, task, rows, rng):
            row, mask = _worker["encoder"].row(each.instruction, act(table, each))
            ids.append(row)
            actions.append(mask)
    return Batch(np.stack(squares), np.stack(patches), np.array(ids, np.int32), np.array(actions))
