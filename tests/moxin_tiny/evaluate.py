"""Measure moxin-tiny: ``python -m moxin_tiny.evaluate``, run in the folder ``tests``.

Stock mlx-vlm converts the checkpoint to every format, and every format answers the test
set by greedy decoding in batches. An answer is right if it equals the expected one
exactly. The formats differ only in their weights: each is dequantised and computed in
float32, because MLX multiplies packed bfloat16 weights slowly on CPUs.
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_vlm import convert, load
from mlx_vlm.quant_utils import dequantize_model
from tqdm import tqdm

from . import CHECKPOINT, RESULTS
from .answering import ask_split, score
from .plots import plot_formats
from .questions import KINDS
from .train import TEST_PER_KIND

# Pictures of the training kind that were not trained on; their seeds are far higher.
UNUSED_TRAIN = 10**9


@dataclass(frozen=True)
class Format:
    """A way to store the decoder's weights, as arguments of ``mlx_vlm.convert``."""

    name: str
    bits: int = 16
    group_size: int = 0
    mode: str = "affine"

    def convert(self, source: Path, target: Path) -> None:
        """Convert ``source`` with stock mlx-vlm, without showing its messages."""
        options: dict[str, Any] = {"dtype": "bfloat16"}
        if self.group_size:
            options = {"quantize": True, "q_bits": self.bits, "q_mode": self.mode}
            options["q_group_size"] = self.group_size
        with contextlib.redirect_stdout(StringIO()):
            convert(str(source), str(target), trust_remote_code=False, **options)


FORMATS = (
    Format("bf16"),
    *(Format(f"{b} bits, group {g}", b, g) for b in (8, 6, 4, 3, 2) for g in (32, 64, 128)),
    Format("mxfp8", 8, 32, "mxfp8"),
    Format("mxfp4", 4, 32, "mxfp4"),
    Format("nvfp4", 4, 16, "nvfp4"),
)


def load_unpacked(path: Path) -> tuple[nn.Module, Any]:
    """Model and processor, the model's weights as stored and in float32."""
    model, processor = load(str(path))
    model.set_dtype(mx.float32)
    return dequantize_model(model), processor


def evaluate(
    checkpoint: Path, formats: Iterable[Format], per_kind: int, results_file: Path
) -> None:
    """Score every format on the test set, and bf16 on pictures of the training kind too.

    The results are written after each format.
    """
    rows: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    reference = features = None
    groups: list = []
    with tempfile.TemporaryDirectory() as folder:
        for form in tqdm(formats, unit="format"):
            target = Path(folder) / form.name
            form.convert(checkpoint, target)
            model, processor = load_unpacked(target)
            size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
            if features is None:
                groups, features = ask_split(model, processor, "test", per_kind)
                known = ask_split(model, processor, "train", per_kind, UNUSED_TRAIN)
                results["pairs"] = per_kind * len(KINDS)
                results["pictures"] = features.shape[0]
                results["training_kind_bf16"] = score(model, processor, *known)[0].summary()
            # Every format keeps towers and projector in bfloat16: one set of features.
            found, logprobs = score(model, processor, groups, features, reference)
            reference = reference or logprobs
            rows.append({**asdict(form), "bytes": size, **found.summary()})
            text = json.dumps({**results, "formats": rows}, indent=1)
            results_file.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Evaluate, write results.json and draw results.png."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--per-kind", type=int, default=TEST_PER_KIND)
    parser.add_argument("--only", nargs="*", help="names of formats, all by default")
    args = parser.parse_args()
    formats = [form for form in FORMATS if not args.only or form.name in args.only]
    evaluate(args.checkpoint, formats, args.per_kind, args.results)
    results = json.loads(args.results.read_text(encoding="utf-8"))
    plot_formats(results, args.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
