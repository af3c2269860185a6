"""Pictures, instructions and the expert's actions as arrays, made from seeds.

Training draws every picture afresh; none is seen twice. Several instructions go with each
picture, since the expert knows the next action for all of them.
"""

import random
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from moxin_tiny.texts import BOS_ID, EOS_ID, SPACE
from PIL import Image
from tokenizers import Tokenizer

from .actions import ActionEncoder
from .architecture import IMAGE_SIZE, NUM_PATCHES
from .drawing import draw
from .expert import act, disturb
from .layouts import make_table
from .lesson import patch_labels
from .table import ACTION_DIM, Table
from .tasks import KINDS, Task, make_task
from .texts import PROMPT_START, prompt

# Tokens after the prompts' common start: instruction, action, ``</s>``, padding.
ROW_TOKENS = 25
# An action's tokens and ``</s>``.
ANSWER_TOKENS = ACTION_DIM + 1


class Batch(NamedTuple):
    """Pictures, and rows of instructions about them, the same number for each picture.

    Attributes:
        pixels: ``[P, S, S, 3]`` uint8, resized and not yet normalised.
        patches: ``[P, N, LABELS]`` int32: labels of the towers' auxiliary loss (``lesson``).
        ids: ``[B, T]`` int32: instruction, action, ``</s>``, padding; the prompts' common start
            comes before.
        starts: ``[B]`` int32: where in its row each action starts.
    """

    pixels: np.ndarray
    patches: np.ndarray
    ids: np.ndarray
    starts: np.ndarray


def square_bytes(picture: Image.Image) -> np.ndarray:
    """``[S, S, 3]`` uint8: the image processor's pixels of a square picture before scaling."""
    return np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def _tasks(table: Table, first: Task, count: int, rng: random.Random) -> list[Task]:
    """``first`` and other tasks that a picture of the same table can belong to.

    Many are about the same item: the gripper is near it more often than near others.
    """
    tasks = [first]
    while len(tasks) < count:
        if table.held is not None:
            kind, item = rng.choice(("move", "beside", "into", "into")), table.held
            item = item if kind != "move" else rng.choice(table.named)
        else:
            kind, item = rng.choice(KINDS), rng.choice(table.named)
            item = first.item if rng.random() < 0.3 else item
        tasks.append(make_task(kind, table, "train", rng, item=item))
    return tasks


class Encoder:
    """Instructions and actions to token ids.

    Args:
        placeholder: id in the place of a visual token.
        pad: id of ``<PAD>``, the first one after the vocabulary proper.
    """

    def __init__(self, tokenizer: Tokenizer, placeholder: int, pad: int):
        self._tokenizer, self._pad = tokenizer, pad
        self._encode_action = ActionEncoder(pad)
        self._space = tokenizer.token_to_id(SPACE)
        common = tokenizer.encode(PROMPT_START, add_special_tokens=False).ids
        # The start of every row: ``<s>``, the picture, the prompts' first words.
        self.start = [BOS_ID] + [placeholder] * NUM_PATCHES + common
        self._text = lru_cache(maxsize=1 << 16)(self._encode_text)

    def _encode_text(self, instruction: str) -> list[int]:
        ids = self._tokenizer.encode(prompt(instruction), add_special_tokens=False).ids
        return [*ids[len(self.start) - 1 - NUM_PATCHES :], self._space]

    def row(self, instruction: str, action: np.ndarray) -> tuple[list[int], int]:
        """One row of a ``Batch``: its ``ids`` and its start."""
        before = self._text(instruction)
        ids = [*before, *self._encode_action(action), EOS_ID]
        return ids + [self._pad] * (ROW_TOKENS - len(ids)), len(before)


_worker: dict = {}


def start_worker(tokenizer: str, placeholder: int, pad: int) -> None:
    """Prepare a process that runs ``make_batch``."""
    _worker["encoder"] = Encoder(Tokenizer.from_str(tokenizer), placeholder, pad)


def make_batch(start: int, pictures: int, rows: int) -> Batch:
    """Tables ``start`` to ``start + pictures - 1`` of the training split.

    Args:
        rows: instructions for each picture.
    """
    squares, patches, ids, starts = [], [], [], []
    for index in range(start, start + pictures):
        table, rng = make_table("train", index)
        task = make_task(rng.choice(KINDS), table, "train", rng)
        table = disturb(table, task, rng)
        squares.append(square_bytes(draw(table)))
        patches.append(patch_labels(table))
        for each in _tasks(table, task, rows, rng):
            row, begin = _worker["encoder"].row(each.instruction, act(table, each))
            ids.append(row)
            starts.append(begin)
    rows = np.array(ids, np.int32), np.array(starts, np.int32)
    return Batch(np.stack(squares), np.stack(patches), *rows)
