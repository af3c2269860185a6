"""The figures for training.json and results.json; they need matplotlib."""

from pathlib import Path
from typing import Any

DPI = 110


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG without matplotlib's version: equal figures are equal files."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def plot_training(log: dict[str, Any], path: Path) -> None:
    """The loss of the answers' tokens and the share of right validation answers, by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        *zip(*[row[:2] for row in log["step_answer_loss_patch_loss"]]),
        linewidth=1,
        label="training loss",
    )
    steps, losses, right = zip(*log["step_validation_loss_exact_match"])
    axes.plot(steps, losses, "o-", markersize=3, label="validation loss")
    axes.set(xlabel="step", ylabel="cross entropy of answer tokens (nats)", yscale="log")
    other = axes.twinx()
    other.plot(steps, [100 * share for share in right], "s--", color="tab:green", markersize=3)
    other.set(ylabel="validation answers right (%, dashed)", ylim=(0, 101))
    axes.legend(loc="lower left")
    save_figure(figure, path)


def plot_formats(results: dict[str, Any], path: Path) -> None:
    """Right answers and KL divergence of every format over its size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    rows = results["formats"]
    affine = [row for row in rows if row["mode"] == "affine"]
    series = {f"group {g}": [r for r in affine if r["group_size"] == g] for g in (32, 64, 128)}
    series["mxfp8, mxfp4, nvfp4"] = [r for r in rows if r["mode"] != "affine"]
    series["bf16"] = [r for r in rows if r["name"] == "bf16"]
    for name, line in series.items():
        line = sorted(line, key=lambda row: row["bytes"])
        sizes = [row["bytes"] / 1e6 for row in line]
        style = "o-" if name.startswith("group") else "D"
        top.plot(sizes, [100 * row["exact_match"] for row in line], style, label=name, markersize=4)
        if name == "bf16":
            continue
        bottom.plot(sizes, [row["kl"] for row in line], style, label=name, markersize=4)
        for row, size in zip(line, sizes):
            if row["group_size"] == 64 or row["mode"] != "affine":
                text = f"{row['bits']} bits" if row["mode"] == "affine" else row["name"]
                bottom.annotate(text, (size, row["kl"]), xytext=(5, 4),
                                textcoords="offset points", fontsize=8)  # fmt: skip
    top.set(ylabel="test answers right (%)")
    bottom.set(ylabel="mean KL from bf16 (nats per token)", yscale="log")
    bottom.set(xlabel="weights (MB; towers, projector and embeddings stay bf16)")
    top.legend(fontsize=8)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    save_figure(figure, path)
