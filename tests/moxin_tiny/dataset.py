"""Pictures and questions as arrays, made from seeds by any number of processes.

Training draws every picture afresh; none is seen twice. It asks several questions about
a picture, one after the other as turns of a conversation; a test row has one question.
"""

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from PIL import Image
from support import preprocessor_config
from tokenizers import Tokenizer

from .architecture import IMAGE_SIZE, NUM_PATCHES, PATCH_SIZE
from .drawing import draw
from .questions import KINDS, Question, ask, prompt
from .scenes import COLOURS, SHAPES, Scene, Thing, draw_scene
from .texts import BOS_ID, EOS_ID

PROCESSOR = MoxinImageProcessor.from_dict(preprocessor_config(IMAGE_SIZE))
# Rows are padded to a multiple of this, because every new length compiles kernels on a GPU.
LENGTH_MULTIPLE = 32
# The same resizing without normalisation.
_SQUARES = MoxinImageProcessor(IMAGE_SIZE, image_mean=[[0] * 3] * 2, image_std=[[1] * 3] * 2)


class Batch(NamedTuple):
    """Pictures and conversations about them, the same number for each picture.

    Attributes:
        pixels: ``[P, S, S, 3]`` uint8, resized and not yet normalised.
        patches: ``[P, N, 4]`` int32, see ``patch_labels``.
        ids: ``[B, T]`` int32: ``<s>``, placeholders, turns (prompt, answer, ``</s>``),
            padding; ``B`` is a multiple of ``P``.
        answers: ``[B, T]`` bool, true at the answers' tokens and their ``</s>``.
    """

    pixels: np.ndarray
    patches: np.ndarray
    ids: np.ndarray
    answers: np.ndarray


def square_bytes(image: Image.Image) -> np.ndarray:
    """``[S, S, 3]`` uint8: the pixels before normalisation, in their smallest form.

    ``normalise`` computes the processor's pixels from it.
    """
    return np.rint(_SQUARES(image)[0, :3].transpose(1, 2, 0) * 255).astype(np.uint8)


def patch_labels(things: Iterable[Thing], width: int, height: int) -> np.ndarray:
    """``[N, 4]`` int32, 0 for background: the thing at each patch's centre.

    Its shape, its colour, and in sixteenths of the picture the column and the row of
    its own centre, all counted from 1.
    """
    side = IMAGE_SIZE // PATCH_SIZE
    centres = (np.arange(side) + 0.5) / side
    labels = np.zeros((side, side, 4), dtype=np.int32)
    for thing in things:
        x = (centres[None, :] - thing.x) * width
        y = (centres[:, None] - thing.y) * height
        names = SHAPES.index(thing.shape), tuple(COLOURS).index(thing.colour)
        label = *names, int(16 * thing.x), int(16 * thing.y)
        labels[np.hypot(x, y) < 1.05 * thing.radius] = [1 + value for value in label]
    return labels.reshape(NUM_PATCHES, 4)


def normalise(squares: mx.array) -> mx.array:
    """``[P, S, S, 3]`` uint8 to the processor's ``[P, 6, S, S]`` float32 pixels."""
    scaled = squares.astype(mx.float32) / 255
    towers = zip(PROCESSOR.image_mean, PROCESSOR.image_std)
    channels = [(scaled - mx.array(mean)) / mx.array(std) for mean, std in towers]
    return mx.concatenate(channels, axis=-1).transpose(0, 3, 1, 2)


def picture_hash(image: Image.Image) -> bytes:
    """Identifies a picture by its pixels."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()[:16]


def picture_questions(split: str, index: int, scene: Scene, count: int) -> list[Question]:
    """``count`` questions about one picture, of different kinds while there are enough."""
    rng = random.Random(f"moxin-tiny/{split}/{index}/questions")
    questions: list[Question] = []
    while len(questions) < count:
        for kind in rng.sample(KINDS, len(KINDS)):
            question = ask(scene, kind, split, rng)
            if question is not None and len(questions) < count:
                questions.append(question)
    return questions


def balanced_questions(split: str, per_kind: int, start: int = 0) -> list[tuple[int, Question]]:
    """``per_kind`` questions of every kind, each with the index of its picture."""
    chosen: list[tuple[int, Question]] = []
    left = dict.fromkeys(KINDS, per_kind)
    index = start
    while any(left.values()):
        scene = draw_scene(split, index)
        for question in picture_questions(split, index, scene, 4):
            if left[question.kind]:
                left[question.kind] -= 1
                chosen.append((index, question))
        index += 1
    return chosen


class TextEncoder:
    """Questions and answers to token ids."""

    def __init__(self, tokenizer: Tokenizer, placeholder: int, pad: int):
        self._tokenizer = tokenizer
        self._placeholder = placeholder
        self._pad = pad
        self.encode = lru_cache(maxsize=1 << 16)(self._encode)

    def _encode(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        start = self._tokenizer.encode(prompt(question), add_special_tokens=False).ids
        whole = self._tokenizer.encode(f"{prompt(question)} {answer}", add_special_tokens=False).ids
        return start, [*whole[len(start) :], EOS_ID]

    def rows(self, conversations: list[list[Question]]) -> tuple[np.ndarray, np.ndarray]:
        """``ids`` and ``answers`` of ``Batch``, one row per conversation."""
        rows, is_answer = [], []
        for questions in conversations:
            ids = [BOS_ID] + [self._placeholder] * NUM_PATCHES
            mask = [False] * len(ids)
            for question in questions:
                start, answer = self.encode(question.text, question.answer)
                ids += start + answer
                mask += [False] * len(start) + [True] * len(answer)
            rows.append(ids)
            is_answer.append(mask)
        length = -(-max(map(len, rows)) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        return (
            np.array([r + [self._pad] * (length - len(r)) for r in rows], dtype=np.int32),
            np.array([m + [False] * (length - len(m)) for m in is_answer]),
        )


_worker: dict = {}


def start_worker(tokenizer: str, placeholder: int, pad: int, forbidden: frozenset[bytes]) -> None:
    """Prepare a process: its tokenizer, and the hashes of pictures that it must not draw."""
    _worker["encoder"] = TextEncoder(Tokenizer.from_str(tokenizer), placeholder, pad)
    _worker["forbidden"] = forbidden


def make_batch(split: str, start: int, pictures: int, questions: int, turns: int) -> Batch:
    """Pictures ``start`` to ``start + pictures - 1`` of a split.

    Args:
        questions: number of questions about each picture.
        turns: number of questions per row, a divisor of ``questions``.

    Raises:
        RuntimeError: if one of them is a picture of the test set.
    """
    squares = np.empty((pictures, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    patches = np.empty((pictures, NUM_PATCHES, 4), dtype=np.int32)
    conversations: list[list[Question]] = []
    for row in range(pictures):
        scene = draw_scene(split, start + row)
        image = draw(scene)
        if picture_hash(image) in _worker["forbidden"]:
            raise RuntimeError(f"Picture {start + row} of {split!r} is in the test set")
        squares[row] = square_bytes(image)
        patches[row] = patch_labels(scene.things, scene.width, scene.height)
        asked = picture_questions(split, start + row, scene, questions)
        conversations += [asked[first : first + turns] for first in range(0, questions, turns)]
    return Batch(squares, patches, *_worker["encoder"].rows(conversations))


def batches(
    tasks: Iterable[tuple],
    workers: int,
    setup: tuple,
    make: Callable[..., Any] = make_batch,
    start: Callable[..., None] = start_worker,
    method: str = "spawn",
) -> Iterator[Any]:
    """Results of ``make`` in the order of ``tasks``, computed ahead of their use.

    Args:
        tasks: arguments of ``make``.
        workers: number of processes.
        setup: arguments of ``start``, which each process calls first.
        method: how processes start. With "fork" they need no imports, which take more than ten
            seconds where transformers imports torch; no GPU may have been used before.
    """
    context = get_context(method)
    with ProcessPoolExecutor(workers, context, start, setup) as pool:
        pending: deque = deque()
        for task in tasks:
            pending.append(pool.submit(make, *task))
            if len(pending) > 3 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
