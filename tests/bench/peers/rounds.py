"""Measures, their sides, and the interleaved rounds in which they are timed."""

import importlib
import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

from .models import Models

Run = Callable[[], float]
# Seconds of a round of one side, including compiling.
ROUND_LIMIT = 150.0
KERNELS_SWITCH = "MLX_VLM_MOXIN_KERNELS"


@contextmanager
def kernels(are_on: bool) -> Iterator[None]:
    """This package's CUDA kernels on or off; the switch is read with every pass."""
    with mock.patch.dict(os.environ, {} if are_on else {KERNELS_SWITCH: "0"}):
        yield


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError if work is still in Python after this many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Once more each second: a library may have caught the first one and gone on.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Side:
    """One way of doing a measure's work.

    Attributes:
        name: as the table shows it; ours begin with ``ours``.
        entry: ``module:function`` of this package. ``function(models, **options)`` prepares
            the work and returns a function that does one round and returns its value. It is
            imported when the side's turn comes, so that its packages may be missing.
        needs: names, in ``models``, of the models that it uses.
        options: keyword arguments of the function.
        kernels: False to run without this package's CUDA kernels.
        compiled: True if PyTorch compiles for half a minute before the first round.
    """

    name: str
    entry: str
    needs: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    kernels: bool = True
    compiled: bool = False

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("ours")

    def prepare(self, models: Models) -> Run:
        """Build what the side needs."""
        module, function = self.entry.split(":")
        entry = getattr(importlib.import_module(f"{__package__}.{module}"), function)
        with kernels(self.kernels):
            run = entry(models, **self.options)

        def one_round() -> float:
            with kernels(self.kernels):
                return run()

        return one_round


@dataclass(frozen=True)
class Measure:
    """A quantity and the sides that are compared by it.

    Attributes:
        name: as given to ``--only``.
        title: as the table shows it.
        unit: ``tokens/s`` or ``ms``.
        sides: in the order of a round.
        decode: batch size, model whose weights one step reads, and tokens in its cache, if the
            measure has a limit.
    """

    name: str
    title: str
    unit: str
    sides: tuple[Side, ...]
    decode: tuple[int, str, int] | None = None

    @property
    def needs(self) -> set[str]:
        """Names of all models that the sides use."""
        return {name for side in self.sides for name in side.needs}

    def only(self, choose: Callable[[Side], bool]) -> "Measure":
        """The same with the sides for which ``choose`` is true."""
        return replace(self, sides=tuple(filter(choose, self.sides)))


@dataclass
class Result:
    """What one side gave.

    Attributes:
        side: its name.
        is_ours: whether it is Moxin in this package.
        values: one per round, in the measure's unit.
        error: why it was skipped or stopped, in one line.
        complete: whether nothing is left to do: all rounds ran, or an error ended them.
    """

    side: str
    is_ours: bool
    values: list[float] = field(default_factory=list)
    error: str | None = None
    complete: bool = False

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None


def _reason(error: Exception) -> str:
    """The result in one line; a missing package is not a failure."""
    if isinstance(error, ImportError):
        return f"skipped: {error}"
    text = " ".join(str(error).split())
    return f"failed: {type(error).__name__}: {text}"[:300]


def measure_rounds(
    measure: Measure,
    models: Models,
    rounds: int,
    tick: Callable[[], None],
    note: Callable[[str], None] = lambda line: None,
    each: Callable[[list["Result"]], None] = lambda results: None,
    limit: float | None = None,
    deadline: float = math.inf,
) -> list[Result]:
    """Time all sides of ``measure``: one warm-up round, then ``rounds`` measured ones.

    A side that raises, or whose round is too long, is left out from then on; the others
    continue.

    Args:
        tick: called after every round of a side.
        note: receives a line after every round of a side, which shows the slow ones.
        each: receives all results after every round of a side.
        limit: seconds for a round of one side; None for ``ROUND_LIMIT``.
        deadline: by ``time.monotonic()``, when the work ends; what it stops is not complete.
    """
    limit = limit or ROUND_LIMIT
    results = [Result(side.name, side.is_ours) for side in measure.sides]
    runs: list[Run | None] = [None] * len(results)

    def guarded(index: int, work: Callable[[], Any]) -> Any:
        """What ``work`` gives; None if it failed, which ends the side, or time is up."""
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        try:
            with time_limit(min(limit, left)):
                return work()
        except Exception as error:
            runs[index] = None
            if time.monotonic() < deadline:
                results[index].error = _reason(error)
                results[index].complete = True
            return None

    for index, side in enumerate(measure.sides):
        runs[index] = guarded(index, partial(side.prepare, models))
    for number in range(1 + rounds):
        for index, result in enumerate(results):
            if runs[index] is not None:
                start = time.perf_counter()
                value = guarded(index, runs[index])
                if value is not None:
                    result.values += [value] if number else []
                    result.complete = number == rounds
                    seconds = time.perf_counter() - start
                    name = f"round {number} of {rounds}" if number else "warm-up"
                    note(f"  {name}, {result.side}: {value:.4g} {measure.unit} ({seconds:.0f} s)")
                each(results)
            tick()
    return results
