"""The picture of a sweep: size against loss of quality for each width."""

from collections.abc import Sequence
from pathlib import Path

from mlx_vlm_moxin.checkpoints.messages import format_size

DPI = 150


def plot(rows: Sequence[dict], path: Path) -> None:
    """Draw mean KL divergence against size as a PNG, one line per group size.

    Args:
        rows: rows of a sweep, each with ``bits``, ``group_size`` and the summary of its
            verification. Rows whose divergence is not finite are left out.
        path: the PNG to write.
    """
    # matplotlib's object interface needs no display and changes no global state.
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["kl_mean"] is not None]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for index, group_size in enumerate(sorted({row["group_size"] for row in rows})):
        line = sorted(
            (row for row in rows if row["group_size"] == group_size),
            key=lambda row: row["size_bytes"],
        )
        points = [(row["size_bytes"], row["kl_mean"]) for row in line]
        axes.plot(*zip(*points), "o-", label=f"group size {group_size}")
        # Label neighbouring lines on opposite sides.
        side = 1 if index % 2 else -1
        for point, row in zip(points, line):
            axes.annotate(
                f"{row['bits']} bits\ntop-1 {row['top1_agreement']:.1%}",
                point,
                textcoords="offset points",
                xytext=(-8 * side, -8 * side),
                ha="right" if side > 0 else "left",
                va="top" if side > 0 else "bottom",
                fontsize=8,
            )
    if rows:
        if all(row["kl_mean"] > 0 for row in rows):
            axes.set_yscale("log")
        axes.set_title(f"Source: {format_size(rows[0]['source_size_bytes'])}", fontsize=10)
        axes.legend()
    axes.margins(x=0.25, y=0.25)
    axes.xaxis.set_major_formatter(lambda size, _: format_size(int(size)))
    axes.set_xlabel("size of the weights")
    axes.set_ylabel("mean KL(source || result) per position (nats)")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, format="png", dpi=DPI)
