"""What quantising cost, as numbers, as text and as JSON."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from mlx_vlm_moxin.conversion.verify.divergence import Divergence, concatenate
from mlx_vlm_moxin.conversion.verify.samples import Sample

FILE_NAME = "verification.json"


def format_size(size: int) -> str:
    """``size`` bytes in decimal units, as file managers and the Hub show them."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} bytes"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _summary(divergence: Divergence) -> dict[str, float | int | None]:
    """The numbers of one row; JSON has no infinity, so null stands for it."""
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
        source, result: what each takes.
        samples, divergences: the questions, and the comparison on each one's answer.
        warning: one line that names the likely cause if the result looks broken.
        own_pictures: whether the pictures are the user's; their names stay out of files.
    """

    source: Footprint
    result: Footprint
    samples: list[Sample]
    divergences: list[Divergence]
    warning: str | None = None
    own_pictures: bool = False

    @property
    def total(self) -> Divergence:
        """All answers' positions together."""
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
        """Write ``verification.json``: the summary, then every sample position by position."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def table(self) -> str:
        """For the screen: one row per answer, the total, then sizes and the warning."""
        head = ["picture", "prompt", "tokens", "KL mean", "KL max", "top-1", "perplexity ratio"]
        rows = [
            [sample.picture.name, sample.prompt, *_cells(divergence)]
            for sample, divergence in zip(self.samples, self.divergences)
        ]
        rows.append(["all", "", *_cells(self.total)])
        widths = [max(map(len, column)) for column in zip(head, *rows)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths))
            )
            for row in [head, *rows]
        ]
        lines += [f"source: {self.source}", f"result: {self.result}"]
        if self.warning is not None:
            lines.append(f"warning: {self.warning}")
        return "\n".join(lines)

    def markdown(self) -> str:
        """For the model card: the totals and both models' sizes."""
        total = self.total
        rows = [
            ("KL divergence per position, mean", f"{total.kl_mean:.5f} nats"),
            ("KL divergence per position, max", f"{total.kl_max:.5f} nats"),
            ("Top-1 agreement", f"{total.top1_agreement:.1%}"),
            ("Perplexity ratio", f"{total.perplexity_ratio:.4f}"),
            ("Positions compared", str(total.positions)),
            ("This model", str(self.result)),
            ("Its source", str(self.source)),
        ]
        lines = ["| Measure | Value |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
        if self.warning is not None:
            lines += ["", f"**Warning:** {self.warning}"]
        return "\n".join(lines)
