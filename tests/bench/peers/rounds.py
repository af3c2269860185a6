"""Measures, their sides, and the interleaved rounds in which they are timed."""

import importlib
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
    """

    name: str
    entry: str
    needs: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    kernels: bool = True

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

    def only(self, text: str) -> "Measure":
        """The same with the sides whose names contain ``text``."""
        return replace(self, sides=tuple(side for side in self.sides if text in side.name))


@dataclass
class Result:
    """What one side gave.

    Attributes:
        side: its name.
        is_ours: whether it is Moxin in this package.
        values: one per round, in the measure's unit.
        error: why it was skipped or stopped, in one line.
    """

    side: str
    is_ours: bool
    values: list[float] = field(default_factory=list)
    error: str | None = None

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
) -> list[Result]:
    """Time all sides of ``measure``: one warm-up round, then ``rounds`` measured ones.

    A side that raises, or whose round is too long, is left out from then on; the others
    continue.

    Args:
        tick: called after every round of a side.
        note: receives a line after every round of a side, which shows the slow ones.
        each: receives all results after every round of a side.
        limit: seconds for a round of one side; None for ``ROUND_LIMIT``.
    """
    limit = limit or ROUND_LIMIT
    results = [Result(side.name, side.is_ours) for side in measure.sides]
    runs: list[Run | None] = []
    for side, result in zip(measure.sides, results):
        try:
            with time_limit(limit):
                runs.append(side.prepare(models))
        except Exception as error:
            runs.append(None)
            result.error = _reason(error)
    for number in range(1 + rounds):
        for index, result in enumerate(results):
            if runs[index] is not None:
                start = time.perf_counter()
                try:
                    with time_limit(limit):
                        value = runs[index]()
                except Exception as error:
                    runs[index] = None
                    result.error = _reason(error)
                else:
                    result.values += [value] if number else []
                    seconds = time.perf_counter() - start
                    name = f"round {number} of {rounds}" if number else "warm-up"
                    note(f"  {name}, {result.side}: {value:.4g} {measure.unit} ({seconds:.0f} s)")
                each(results)
            tick()
    return results
