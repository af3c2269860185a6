"""Runs tasks: chooses examples, answers those without an answer, and scores all of them."""

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from typing import TypeVar

from mlx_vlm.models.moxin.prepared_picture import PreparedPicture
from tqdm import tqdm

from mlx_vlm_moxin.evals.answering import Answering, Question
from mlx_vlm_moxin.evals.answers_file import AnswersFile
from mlx_vlm_moxin.evals.data.picture import open_picture
from mlx_vlm_moxin.evals.data.source import Source
from mlx_vlm_moxin.evals.example import Answer, Example, Picture
from mlx_vlm_moxin.evals.scores.summary import Numbers
from mlx_vlm_moxin.evals.tasks import Task

T = TypeVar("T")
# Maximum length of a generated answer.
MAX_TOKENS = 128
# Threads help, since decoding and resizing pictures release the GIL.
PICTURE_THREADS = 4
# The seed with which the published harness draws its smaller sets.
SEED = 21


def select(
    examples: Iterable[Example], limit: int | None, splits: Sequence[str], shuffle: bool = True
) -> list[Example]:
    """Choose the examples of a run.

    Args:
        examples: all examples of the task.
        limit: maximum number, of each of ``splits`` if there are any; None for all. Examples are
            drawn like the published harness's smaller sets, so that a higher limit only adds
            examples.
        shuffle: False to choose the first ones instead.

    Raises:
        ValueError: if there are no examples, or two have the same id.
    """
    # Read a stream only as far as needed.
    chosen = list(examples if shuffle or limit is None else _first(examples, limit, splits))
    counts = Counter(example.id for example in chosen)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"The data set has the id {twice[:50]!r} {counts[twice]} times")
    if limit is not None and shuffle:
        random.Random(SEED).shuffle(chosen)
        chosen = _first(chosen, limit, splits)
    if not chosen:
        raise ValueError("The data set has no examples")
    return chosen


def _first(examples: Iterable[Example], limit: int, splits: Sequence[str]) -> list[Example]:
    """The first ``limit`` examples, of each split if there are splits."""
    if not splits:
        return list(islice(examples, limit))
    chosen, counts = [], Counter()
    for example in examples:
        if counts[example.group] < limit:
            chosen.append(example)
            counts[example.group] += 1
        if all(counts[split] >= limit for split in splits):
            break
    return chosen


@dataclass(frozen=True)
class Result:
    """The result of a task.

    Attributes:
        answers: answers to all chosen examples, in the data set's order.
        numbers: scores of the task, see ``scores.summary``.
        answered: number of answers that this run computed.
        seconds: time that this took.
    """

    answers: list[Answer]
    numbers: Numbers
    answered: int
    seconds: float


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


class Run:
    """Runs tasks with one model.

    Args:
        answering: the model.
        model, weights: the model's name and the id of its weights for the answers file.
        file: previous answers; new ones are appended.
        batch_size: questions per batch.
        quiet: no progress bars.
        max_tokens: maximum length of a generated answer.
    """

    def __init__(
        self,
        answering: Answering,
        model: str,
        weights: str,
        file: AnswersFile,
        batch_size: int = 1,
        quiet: bool = False,
        max_tokens: int = MAX_TOKENS,
    ):
        self._answering, self._file = answering, file
        self._model, self._weights = model, weights
        self._batch_size, self._quiet, self._max_tokens = batch_size, quiet, max_tokens

    def __call__(self, name: str, task: Task, examples: Sequence[Example]) -> Result:
        """Answer the examples without an answer, and score all of them.

        Raises:
            OSError, ValueError: if a picture cannot be read, or the file contains answers to other
                questions.
        """
        waiting = [example for example in examples if not self._is_answered(name, task, example)]
        # Sort by picture, so that each picture is encoded once.
        waiting.sort(key=lambda example: example.picture_id)
        if waiting and task.strings is not None:
            self._answering.token_ids(task.strings)
        start = time.perf_counter()
        done = len(examples) - len(waiting)
        bar = tqdm(total=len(examples), initial=done, desc=name, unit="ex", disable=self._quiet)
        with bar, ThreadPoolExecutor(PICTURE_THREADS) as pool:
            batches = list(_batches(waiting, self._batch_size))
            prepared = self._prepare(pool, batches[0]) if batches else {}
            for batch, following in zip_longest(batches, batches[1:]):
                images = [prepared[example.picture_id].result() for example in batch]
                # Prepare the next batch while the model computes this one.
                prepared = self._prepare(pool, following or [])
                self._file.add(self._answer(name, task, batch, images))
                bar.update(len(batch))
        seconds = time.perf_counter() - start
        answers = [self._scored(name, task, example) for example in examples]
        return Result(answers, task.summarise(answers), len(waiting), seconds)

    def _prepare(self, pool: Executor, batch: Sequence[Example]) -> dict[str, Future]:
        """Start opening and resizing the pictures of a batch, each once."""
        pictures = {example.picture_id: example.picture for example in batch}
        return {name: pool.submit(self._prepared, picture) for name, picture in pictures.items()}

    def _prepared(self, picture: Picture) -> PreparedPicture:
        return self._answering.prepare(open_picture(picture))

    def _is_answered(self, name: str, task: Task, example: Example) -> bool:
        answer = self._file.get(self._weights, name, example.id)
        if answer is None:
            return False
        if (answer.prompt, answer.answer) != (task.prompt(example), example.answer):
            raise ValueError(
                f"{self._file.path} contains answers to another copy of {name}: example "
                f"{example.id[:50]} is not the same; choose another --output"
            )
        return True

    def _scored(self, name: str, task: Task, example: Example) -> Answer:
        """Score an answer from the file again, since another version may have scored it."""
        answer = self._file.get(self._weights, name, example.id)
        return replace(answer, score=task.score(answer.prediction, answer.answer))

    def _answer(
        self, name: str, task: Task, batch: Sequence[Example], images: Sequence[PreparedPicture]
    ) -> list[Answer]:
        questions = [
            # Other data sets may use the same names for other pictures.
            Question(task.prompt(example), image, f"{name}/{example.picture_id}")
            for example, image in zip(batch, images)
        ]
        if task.strings is None:
            predictions = self._answering.texts(questions, self._max_tokens)
            probabilities = [None] * len(batch)
        else:
            probabilities = self._answering.probabilities(questions, task.strings)
            predictions = [task.strings[row.index(max(row))] for row in probabilities]
        return [
            Answer(
                model=self._model,
                weights=self._weights,
                task=name,
                id=example.id,
                group=example.group,
                prompt=question.prompt,
                answer=example.answer,
                prediction=prediction,
                score=task.score(prediction, example.answer),
                probabilities=row,
            )
            for example, question, prediction, row in zip(
                batch, questions, predictions, probabilities
            )
        ]


def read_examples(task: Task, source: Source, limit: int | None) -> list[Example]:
    """The chosen examples of a task, all checked.

    Raises:
        OSError, ValueError: naming what is missing or wrong, and where.
    """
    return select(task.read(source), limit, task.splits, shuffle=not source.streaming)
