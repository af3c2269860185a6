"""The command line of the comparison."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from mlx_vlm_moxin import register
from mlx_vlm_moxin.bench.machine import Machine, probe
from mlx_vlm_moxin.bench.models import bytes_of

from . import report
from .measures import all_measures, table
from .models import Models
from .rounds import ROUND_LIMIT, Measure, Result, measure_rounds
from .sizes import SHAPES, SMALL, Sizes

CACHE_LIMIT = 2 << 30


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m bench.peers``."""
    parser = argparse.ArgumentParser("python -m bench.peers", description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the names of the measures")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these alone")
    parser.add_argument(
        "--table", action="store_true", help="measure the rows of docs/speed.md, print them so"
    )
    parser.add_argument("--sides", metavar="TEXT", help="only sides with this in their name")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument(
        "--limit", type=float, default=ROUND_LIMIT, help="seconds for a round of one side"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what the file of --json has already"
    )
    parser.add_argument("--small", action="store_true", help="tiny models: shows that it runs")
    parser.add_argument("--shape", choices=SHAPES, default="moxin", help="model whose sizes count")
    return parser


def decode_limit(measure: Measure, models: Models, machine: Machine) -> float | None:
    """Tokens per second if only reading weights and key-values took time."""
    if measure.decode is None:
        return None
    batch, name, context = measure.decode
    language_model = models[name].language_model
    text = models.sizes.config.text_config
    # An embedding is one row; the rest of the decoder is read in every step.
    weights = bytes_of(language_model) - bytes_of(language_model.model.embed_tokens)
    row = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 2
    return batch * machine.bandwidth / (weights + batch * context * row)


def run(
    measures: Sequence[Measure],
    sizes: Sizes,
    rounds: int,
    limit_s: float,
    path: Path | None,
    done: dict[str, Any],
) -> None:
    """Measure and print one after another; ``path`` always holds the results so far.

    Args:
        measures: in this order.
        sizes: those of all models.
        rounds: of each side, after one that warms up.
        limit_s: seconds for a round of one side.
        path: JSON file, or None.
        done: what an earlier run of the same kind measured; the new results are added to it.
    """
    machine = probe()
    # PyTorch allocates from the same memory, so MLX may not cache what it has freed.
    mx.set_cache_limit(CACHE_LIMIT)
    print(
        f"{machine.name}: {machine.bandwidth / 1e9:.0f} GB/s read, "
        f"{machine.flops / 1e12:.1f} TFLOP/s in bf16, measured by MLX",
        flush=True,
    )
    models = Models(sizes)
    total = sum(len(measure.sides) for measure in measures) * (1 + rounds)
    with tqdm(total=total, unit="round", disable=None) as bar:
        for index, measure in enumerate(measures):
            bar.set_description(measure.name)
            start = time.perf_counter()
            models.keep({name for later in measures[index:] for name in later.needs})

            def note(line: str) -> None:
                bar.write(line, file=sys.stderr)

            def each(results: list[Result], measure: Measure = measure) -> None:
                if path is not None:
                    partial = {**report.to_dict(measure, results, None), "rounds": 0}
                    report.save_json(path, machine, {**done, measure.name: partial})

            results = measure_rounds(measure, models, rounds, bar.update, note, each, limit_s)
            ours_ran = any(result.is_ours and result.values for result in results)
            limit = decode_limit(measure, models, machine) if ours_ran else None
            lines = report.text(measure, results, limit)
            bar.write(f"{lines}\n  ({time.perf_counter() - start:.0f} s)", file=sys.stdout)
            sys.stdout.flush()
            done[measure.name] = {**report.to_dict(measure, results, limit), "rounds": rounds}
            if path is not None:
                report.save_json(path, machine, done)


def main(argv: Sequence[str] | None = None) -> None:
    """The command; after Ctrl-C, results so far remain on the screen and in the file."""
    options = parser()
    args = options.parse_args(argv)
    register()
    sizes = SMALL if args.small else Sizes(shape=args.shape)
    measures = {measure.name: measure for measure in all_measures(sizes)}
    if args.list:
        print("\n".join(f"{name:20} {measure.title}" for name, measure in measures.items()))
        return
    unknown = set(args.only or ()) - set(measures)
    if unknown or args.rounds < 1:
        options.error(f"unknown: {', '.join(sorted(unknown))}" if unknown else "--rounds is 1 up")
    if args.resume and not args.json:
        options.error("--resume needs --json FILE")
    done = report.complete(args.json) if args.resume else {}
    chosen = args.only or (table(args.shape) if args.table else measures)
    left = [measures[name] for name in chosen if name not in done]
    if args.sides:
        left = [measure.only(args.sides) for measure in left]
    try:
        run(left, sizes, args.rounds, args.limit, args.json, done)
    except KeyboardInterrupt:
        sys.exit("stopped")
    finally:
        if args.table:
            print(report.markdown(done), flush=True)


if __name__ == "__main__":
    main()
