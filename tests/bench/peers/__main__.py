"""The command line of the comparison."""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from mlx_vlm_moxin import register
from mlx_vlm_moxin.bench.machine import probe

from . import report, tables
from .measures import all_measures, table
from .rounds import ROUND_LIMIT
from .run import Group, remaining, run
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
    parser.add_argument(
        "--sides", nargs="+", metavar="TEXT", help="only sides with one of these in their name"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument(
        "--limit", type=float, default=ROUND_LIMIT, help="seconds for a round of one side"
    )
    parser.add_argument(
        "--budget", type=float, default=math.inf, metavar="SECONDS", help="end after these"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what the file of --json has already"
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="print the tables of an earlier run's JSON"
    )
    parser.add_argument("--small", action="store_true", help="tiny models: shows that it runs")
    parser.add_argument(
        "--layers", type=int, help="of the decoder, to compile kernels quickly: wrong numbers"
    )
    parser.add_argument(
        "--shape", choices=SHAPES, help="model whose sizes count (default: moxin; --table: all)"
    )
    return parser


def chosen(options: argparse.Namespace) -> list[Group]:
    """What the command line names, for each shape in its order.

    Raises:
        ValueError: for the name of no measure.
    """
    shapes = [options.shape or SHAPES[0]]
    if options.table and options.shape is None:
        shapes = list(SHAPES)
    found = []
    for shape in shapes:
        small = replace(SMALL, shape=shape)
        sizes = replace(small if options.small else Sizes(shape=shape), layers=options.layers)
        measures = {measure.name: measure for measure in all_measures(sizes)}
        unknown = set(options.only or ()) - set(measures)
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        names = options.only or measures
        if options.table:
            names = [name for name in table(shape) if name in names]
        found.append((sizes, [measures[name] for name in names]))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """The command; after Ctrl-C, results so far remain on the screen and in the file."""
    start = time.monotonic()
    command = parser()
    options = command.parse_args(argv)
    try:
        if options.markdown:
            measures = report.read_json(options.markdown)["measures"]
            for page, text in tables.page_tables(measures).items():
                print(f"{page}:\n{text}\n")
            return
        register()
        groups = chosen(options)
    except ValueError as error:
        command.error(str(error))
    if options.list:
        for _, measures in groups:
            print("\n".join(f"{measure.name:20} {measure.title}" for measure in measures))
        return
    for is_wrong, text in (
        (options.rounds < 1, "--rounds is 1 up"),
        (options.resume and not options.json, "--resume needs --json FILE"),
        (options.layers and options.json, "--layers gives wrong numbers: not with --json"),
        (options.json and not options.json.parent.is_dir(), "the folder of --json is missing"),
    ):
        if is_wrong:
            command.error(text)
    machine, done = probe(), {}
    try:
        if options.resume:
            done, machine = report.complete(options.json, machine, options.small)
    except ValueError as error:
        command.error(str(error))
    # PyTorch allocates from the same memory, so MLX may not cache what it has freed.
    mx.set_cache_limit(CACHE_LIMIT)
    print(
        f"{machine.name}: {machine.bandwidth / 1e9:.0f} GB/s read, "
        f"{machine.flops / 1e12:.1f} TFLOP/s in bf16, measured by MLX",
        flush=True,
    )
    try:
        for sizes, measures in remaining(groups, done, options.sides or [""]):
            run(measures, sizes, machine, options, start + options.budget, done)
    except KeyboardInterrupt:
        sys.exit("stopped")
    finally:
        if options.table:
            print(tables.markdown(done), flush=True)


if __name__ == "__main__":
    main()
