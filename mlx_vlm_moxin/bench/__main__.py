"""The command line of the benchmark."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mlx_vlm_moxin.checkpoints.messages import print_error
from mlx_vlm_moxin.library.plotting import check_plotting, check_writable

from . import models, report
from .machine import probe
from .measure import Figure, Plan, measure


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m mlx_vlm_moxin bench``."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_vlm_moxin bench",
        description="Measure Moxin on this machine, next to the machine's limit. Ctrl-C "
        "stops and prints what has been measured.",
    )
    parser.add_argument("--model", help="checkpoint or Hub id (default: random weights, full size)")
    parser.add_argument(
        "--bits",
        type=int,
        nargs="+",
        default=list(models.BITS),
        choices=[16, 8, 6, 5, 4, 3, 2],
        help="widths of the random weights; 16 is bfloat16 (default: 16 8 6 4)",
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[300, 2000, 8000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5, help="rounds per figure (default: 5)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens decoded per round")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="draw decoding speed into this PNG")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Bad input ends with one line on standard error and status 1.
    """
    args = parser().parse_args(argv)
    try:
        run(args)
    except (OSError, ValueError, RuntimeError) as error:
        return print_error(error)
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and report; after Ctrl-C, report what was measured so far."""
    if args.plot:
        check_plotting("--plot")
    for path in (args.plot, args.json):
        check_writable(path)
    plan = Plan(args.contexts, args.batches, args.rounds, args.tokens)
    variants = models.variants(args.model, args.bits)
    results: report.Results = {}
    machine = probe()
    with tqdm(total=len(variants) * plan.steps, unit="figure", disable=None) as bar:
        try:
            for name, build in variants:
                bar.set_description(name)
                model, load_s = build()
                results[name] = [] if load_s is None else [Figure("load", load_s, "s")]
                for figure in measure(model, machine, plan):
                    results[name].append(figure)
                    bar.update()
                del model
                models.free()
        except KeyboardInterrupt:
            print("stopped; figures so far:", file=sys.stderr)
    report.print_table(machine, results)
    if args.json:
        report.save_json(args.json, machine, results)
    if args.plot:
        report.save_plot(args.plot, machine, results)


if __name__ == "__main__":
    sys.exit(main())
