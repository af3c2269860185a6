"""A run's results as text and as JSON."""

import datetime
import json
import sys
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlx_vlm_moxin.bench.machine import Machine

from .rounds import Measure, Result

# By the name of the measure: title, unit, limit, sides.
Measures = dict[str, dict[str, Any]]
SIDE_KEYS = {field.name for field in fields(Result)}
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
        values = [float(f"{value:.5g}") for value in result.values]
        side = {**asdict(result), "values": values, "median": result.median}
        if not result.is_ours and result.median is not None:
            side["ours_over_it"] = ratios(results, result)
        sides.append(side)
    return {"title": measure.title, "unit": measure.unit, "limit": limit, "sides": sides}


def stored_results(measures: Measures, name: str) -> list[Result]:
    """The results that ``to_dict`` stored; none for an unknown measure."""
    sides = measures[name]["sides"] if name in measures else []
    return [Result(**{key: side[key] for key in SIDE_KEYS}) for side in sides]


def read_json(path: Path) -> dict[str, Any]:
    """What ``save_json`` wrote.

    Raises:
        ValueError: if the file is none of those, in one line.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        keys = [set(side) for measure in content["measures"].values() for side in measure["sides"]]
        is_run = all(side >= SIDE_KEYS for side in keys) and "name" in content["machine"]
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError):
        is_run = False
    if not is_run:
        raise ValueError(f"{path} is not a file of --json")
    return content


def complete(path: Path, machine: Machine, small: bool) -> tuple[Measures, Machine]:
    """What an earlier run finished, and the machine's limits to which it was compared.

    Args:
        path: of its file, which need not exist.
        machine: as measured now; two measurements of a GPU's bandwidth differ by some percent.
        small: the sizes.

    Returns:
        Complete sides by measure, and the earlier run's ``Machine``; nothing and ``machine`` if
        there is no file.

    Raises:
        ValueError: if that run was of another machine or of other sizes.
    """
    if not path.exists():
        return {}, machine
    content = read_json(path)
    if content["machine"]["name"] != machine.name or content.get("small") != small:
        raise ValueError(f"{path} is of another machine or of other sizes: name another file")
    found = {}
    for name, measure in content["measures"].items():
        sides = [side for side in measure["sides"] if side["complete"]]
        if sides:
            found[name] = {**measure, "sides": sides}
    return found, Machine(**content["machine"])


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def save_json(path: Path, machine: Machine, small: bool, measures: Measures) -> None:
    """Write what was measured so far, with machine, date and versions, at once or not at all."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available()
    content = {
        "date": datetime.date.today().isoformat(),
        "machine": asdict(machine),
        "small": small,
        "torch_device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": _versions(),
        "measures": measures,
    }
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
