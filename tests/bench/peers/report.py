"""A run's results as text and as JSON."""

import datetime
import json
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlx_vlm_moxin.bench.machine import Machine

from .rounds import Measure, Result

PACKAGES = ("mlx", "mlx-vlm", "mlx-lm", "torch", "torchvision", "timm", "transformers", "pillow")


def ratios(results: list[Result], peer: Result) -> list[float]:
    """Medians of our sides over the peer's, in the order of our sides."""
    ours = [result.median for result in results if result.is_ours]
    return [median / peer.median for median in ours if median is not None]


def text(measure: Measure, results: list[Result], limit: float | None) -> str:
    """One line per side: median, smallest and largest value, and our medians over a peer's."""
    lines = [f"{measure.title} [{measure.unit}]"]
    for result in results:
        line = f"  {result.side:34}"
        if result.median is not None:
            values = result.values
            line += f" {result.median:9.2f} ({min(values):.2f} to {max(values):.2f})"
            if limit is not None:
                line += f", {result.median / limit:.0%} of the limit"
            if not result.is_ours and ratios(results, result):
                shown = " and ".join(f"{ratio:.2f}" for ratio in ratios(results, result))
                line += f"; ours are {shown} of it"
        if result.error is not None:
            line += f" {result.error}"
        lines.append(line)
    if limit is not None:
        lines.append(f"  {'limit of the memory bandwidth':34} {limit:9.2f}")
    return "\n".join(lines)


def to_dict(measure: Measure, results: list[Result], limit: float | None) -> dict[str, Any]:
    """The same with every value."""
    sides = []
    for result in results:
        side = {**asdict(result), "median": result.median}
        if not result.is_ours and result.median is not None:
            side["ours_over_it"] = ratios(results, result)
        sides.append(side)
    return {"title": measure.title, "unit": measure.unit, "limit": limit, "sides": sides}


def _amount(value: float, unit: str) -> str:
    """A value with three digits, or four of a large one: ``1,420 tokens/s``."""
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _value(side: dict[str, Any], unit: str, *notes: str) -> str:
    """Median, and in brackets the extremes if they differ by more than a tenth, and notes."""
    low, high = min(side["values"]), max(side["values"])
    if high > 1.1 * low:
        notes = (f"{_amount(low, unit).split()[0]} to {_amount(high, unit).split()[0]}", *notes)
    return _amount(side["median"], unit) + (f" ({'; '.join(notes)})" if notes else "")


def markdown(measures: dict[str, Any]) -> str:
    """A table of a run: our best side of a measure, each other side, and the ratio.

    Our further sides of a measure have a line each, without a ratio.
    """
    lines = ["| | here | other side | ratio |", "|---|--:|--:|--:|"]
    for measure in measures.values():
        unit = measure["unit"]
        sides = [side for side in measure["sides"] if side["median"] is not None]
        ours = [side for side in sides if side["is_ours"]]
        if not ours:
            continue
        choose = max if unit == "tokens/s" else min
        best = choose(ours, key=lambda side: side["median"])
        limit = measure["limit"]
        share = (f"{best['median'] / limit:.0%} of the limit",) if limit else ()
        rows = [
            ["", "", _value(side, unit, _short(side)), f"{best['median'] / side['median']:.2f}"]
            for side in sides
            if not side["is_ours"]
        ] or [["", "", "", ""]]
        rows[0][:2] = [measure["title"], _value(best, unit, *share)]
        rows += [["", _value(side, unit, _short(side)), "", ""] for side in ours if side != best]
        lines += [
            "|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in rows
        ]
    return "\n".join(lines)


def _short(side: dict[str, Any]) -> str:
    """A side's name without what the column says already."""
    return side["side"].removeprefix("the same model, ").removeprefix("ours, ")


def complete(path: Path) -> dict[str, Any]:
    """The measures that an earlier run finished; empty if there is no such file."""
    if not path.is_file():
        return {}
    measures = json.loads(path.read_text(encoding="utf-8"))["measures"]
    return {name: measure for name, measure in measures.items() if measure["rounds"]}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def save_json(path: Path, machine: Machine, measures: dict[str, Any]) -> None:
    """Write what was measured so far, with machine, date and versions."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available()
    content = {
        "date": datetime.date.today().isoformat(),
        "machine": asdict(machine),
        "torch_device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": _versions(),
        "measures": measures,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
