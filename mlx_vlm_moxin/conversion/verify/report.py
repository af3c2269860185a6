"""The result of a verification as numbers, as text and as JSON."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from mlx_vlm_moxin.checkpoints.messages import format_size, print_table
from mlx_vlm_moxin.conversion.verify.actions import ActionCost
from mlx_vlm_moxin.conversion.verify.divergence import Divergence, concatenate
from mlx_vlm_moxin.conversion.verify.samples import Sample

FILE_NAME = "verification.json"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _summary(divergence: Divergence) -> dict[str, float | int | None]:
    """The numbers of one row; infinity becomes null, since JSON has none."""
    return {
        "positions": divergence.positions,
        "kl_mean": _number(divergence.kl_mean),
        "kl_max": _number(divergence.kl_max),
        "top1_agreement": divergence.top1_agreement,
        "perplexity_ratio": _number(divergence.perplexity_ratio),
    }


def _cells(divergence: Divergence) -> list[str]:
    return [
        str(divergence.positions),
        f"{divergence.kl_mean:.5f}",
        f"{divergence.kl_max:.5f}",
        f"{divergence.top1_agreement:.1%}",
        f"{divergence.perplexity_ratio:.4f}",
    ]


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model's safetensors files and stored bits per parameter."""

    size_bytes: int
    bits_per_weight: float

    def __str__(self) -> str:
        return f"{format_size(self.size_bytes)}, {self.bits_per_weight:.2f} bits per weight"


@dataclass(frozen=True)
class Verification:
    """A result compared with its source on the source's own greedy answers.

    Attributes:
        source, result: sizes of the two models.
        samples, divergences: the questions, and the comparison on the answer to each.
        warning: one line that names the likely cause if the result looks broken.
        own_pictures: whether the pictures are the user's; if so, files do not name them.
        actions: comparison of actions; None for models that predict none.
    """

    source: Footprint
    result: Footprint
    samples: list[Sample]
    divergences: list[Divergence]
    warning: str | None = None
    own_pictures: bool = False
    actions: ActionCost | None = None

    @property
    def total(self) -> Divergence:
        """The positions of all answers joined."""
        return concatenate(self.divergences)

    def to_dict(self) -> dict:
        """Plain values, ready for ``json``; KL in nats per position, null for infinite."""
        pictures = sorted({sample.picture for sample in self.samples})
        names = {picture: picture.name for picture in pictures}
        if self.own_pictures:
            names = {picture: f"picture {i}" for i, picture in enumerate(pictures, start=1)}
        return {
            **_summary(self.total),
            "size_bytes": self.result.size_bytes,
            "bits_per_weight": self.result.bits_per_weight,
            "source_size_bytes": self.source.size_bytes,
            "source_bits_per_weight": self.source.bits_per_weight,
            "warning": self.warning,
            **({} if self.actions is None else {"actions": self.actions.to_dict()}),
            "samples": [
                {
                    "picture": names[sample.picture],
                    "prompt": sample.prompt,
                    **_summary(divergence),
                    "kl": [_number(value) for value in divergence.kl.tolist()],
                    "agrees": divergence.agrees.tolist(),
                }
                for sample, divergence in zip(self.samples, self.divergences)
            ],
        }

    def save(self, path: Path) -> None:
        """Write ``verification.json``: the summary, then every position of each sample."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def print_table(self) -> None:
        """Print one row per answer, the total, then sizes and the warning."""
        table = Table(box=None, pad_edge=False)
        table.add_column("picture", no_wrap=True)
        table.add_column("prompt")
        for name in ("tokens", "KL mean", "KL max", "top-1", "perplexity ratio"):
            table.add_column(name, justify="right")
        for sample, divergence in zip(self.samples, self.divergences):
            table.add_row(sample.picture.name, sample.prompt, *_cells(divergence))
        table.add_row("all", "", *_cells(self.total))
        print_table(table)
        for name, value in self.actions.rows() if self.actions is not None else ():
            print(f"{name}: {value}")
        print(f"source: {self.source}")
        print(f"result: {self.result}")
        if self.warning is not None:
            print(f"warning: {self.warning}")

    def markdown(self) -> str:
        """Markdown for the model card: the totals and the sizes of both models."""
        total = self.total
        rows = [
            ("KL divergence per position, mean", f"{total.kl_mean:.5f} nats"),
            ("KL divergence per position, max", f"{total.kl_max:.5f} nats"),
            ("Top-1 agreement", f"{total.top1_agreement:.1%}"),
            ("Perplexity ratio", f"{total.perplexity_ratio:.4f}"),
            ("Positions compared", str(total.positions)),
            *(() if self.actions is None else self.actions.rows()),
            ("This model", str(self.result)),
            ("Its source", str(self.source)),
        ]
        lines = ["| Measure | Value |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
        if self.warning is not None:
            lines += ["", f"**Warning:** {self.warning}"]
        return "\n".join(lines)
