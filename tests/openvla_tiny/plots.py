"""The figures for training.json and results.json; they need matplotlib."""

from pathlib import Path
from typing import Any

from moxin_tiny.plots import save_figure


def plot_training(log: dict[str, Any], path: Path) -> None:
    """Training and validation loss and the share of right action tokens, by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps, losses, lessons = zip(*log["step_losses"])
    axes.plot(steps, losses, linewidth=1, label="training loss")
    axes.plot(steps, lessons, linewidth=1, color="0.7", label="loss of the towers' lesson")
    steps, losses, _, right = zip(*log["step_validation"])
    axes.plot(steps, losses, "o-", markersize=3, label="validation loss (averaged weights)")
    axes.set(xlabel="step", ylabel="cross entropy of action tokens (nats)", yscale="log")
    other = axes.twinx()
    other.plot(steps, [100 * share for share in right], "s--", color="tab:green", markersize=3)
    other.set(ylabel="whole actions right (%, dashed)", ylim=(0, 101))
    axes.legend(loc="center right")
    save_figure(figure, path)


def plot_formats(results: dict[str, Any], path: Path) -> None:
    """Success rate of every format, by kind of task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    formats = results["formats"]
    kinds = list(formats[0]["by_kind"])
    width = 0.8 / len(kinds)
    for offset, kind in enumerate(kinds):
        places = [row + offset * width for row in range(len(formats))]
        axes.bar(places, [100 * row["by_kind"][kind] for row in formats], width, label=kind)
    axes.set_xticks([row + 0.4 - width / 2 for row in range(len(formats))])
    axes.set_xticklabels([row["name"] for row in formats], rotation=20)
    axes.set(ylabel="episodes that succeed (%)", ylim=(0, 101))
    axes.legend(ncols=len(kinds), fontsize=8, loc="lower left")
    axes.grid(axis="y", alpha=0.3)
    save_figure(figure, path)
