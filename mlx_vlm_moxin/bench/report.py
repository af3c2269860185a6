"""The figures of a run as a table, as JSON and as a plot."""

import datetime
import json
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from mlx_vlm_moxin import __version__
from mlx_vlm_moxin.checkpoints import messages

from .machine import Machine
from .measure import Figure

Results = dict[str, list[Figure]]


def print_table(machine: Machine, results: Results) -> None:
    """One row per figure, one column per model: value and share of the limit."""
    table = Table(title=f"Moxin on {machine.name}", caption=_caption(machine))
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    rows = [figure.name for figure in next(iter(results.values()), [])]
    for index, row in enumerate(rows):
        cells = [
            _cell(figures[index]) if index < len(figures) else "" for figures in results.values()
        ]
        table.add_row(row, *cells)
    messages.print_table(table)


def _cell(figure: Figure) -> str:
    value = f"{figure.value:.1f}" if figure.value < 100 else f"{figure.value:.0f}"
    share = "" if figure.share is None else f" ({figure.share:.0%})"
    return f"{value} {figure.unit}{share}"


def _caption(machine: Machine) -> str:
    return (
        f"In brackets: share of this machine's limit ({machine.bandwidth / 1e9:.0f} GB/s read, "
        f"{machine.flops / 1e12:.1f} TFLOP/s bf16, both measured in this run)"
    )


def to_dict(machine: Machine, results: Results) -> dict:
    """All figures with date, versions and machine, ready for ``json``."""
    from importlib.metadata import version

    return {
        "date": datetime.date.today().isoformat(),
        "versions": {
            "mlx": version("mlx"),
            "mlx-vlm": version("mlx-vlm"),
            "mlx-vlm-moxin": __version__,
        },
        "machine": asdict(machine),
        "results": {
            name: [{**asdict(figure), "share": figure.share} for figure in figures]
            for name, figures in results.items()
        },
    }


def save_json(path: Path, machine: Machine, results: Results) -> None:
    """Write the result of ``to_dict`` to ``path``."""
    text = json.dumps(to_dict(machine, results), indent=2) + "\n"
    path.write_text(text, encoding="utf-8")


def save_plot(path: Path, machine: Machine, results: Results) -> None:
    """Plot the decoding speed of each model and its limit as a PNG at ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(results)
    chosen = [
        next((f for f in figures if f.name.startswith("decode, batch 1")), None)
        for figures in results.values()
    ]
    figure, axes = plt.subplots(figsize=(7, 0.6 * len(names) + 1.6))
    axes.barh(names, [f.limit if f else 0 for f in chosen], color="#d0d0d0", label="limit")
    axes.barh(names, [f.value if f else 0 for f in chosen], height=0.5, label="measured")
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s, batch 1")
    axes.set_title(machine.name)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
