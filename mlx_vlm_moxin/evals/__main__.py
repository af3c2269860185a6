"""``python -m mlx_vlm_moxin eval``: Moxin's published table, measured on a checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_vlm.models.moxin.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES

from mlx_vlm_moxin.checkpoints.messages import print_error
from mlx_vlm_moxin.evals import report
from mlx_vlm_moxin.evals.answering import Answering
from mlx_vlm_moxin.evals.answers_file import AnswersFile, default_path
from mlx_vlm_moxin.evals.options import add_example_options, examples_of
from mlx_vlm_moxin.evals.published import MOXIN, PUBLISHED, match
from mlx_vlm_moxin.evals.run import Run
from mlx_vlm_moxin.evals.tasks import TASKS
from mlx_vlm_moxin.evals.weights_id import weights_id
from mlx_vlm_moxin.library.load import load


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m mlx_vlm_moxin eval``."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_vlm_moxin eval",
        description="Measure a checkpoint on the benchmarks of Moxin's report. Run the same "
        "command again to resume an interrupted run.",
    )
    add = parser.add_argument
    add("--model", required=True, help="checkpoint or Hub id")
    add("--adapter-path", help="LoRA or DoRA adapter")
    add(
        "--quantize",
        type=int,
        choices=AFFINE_BITS,
        metavar="BITS",
        help=f"quantise the decoder while it is loaded: {', '.join(map(str, AFFINE_BITS))} bits",
    )
    add(
        "--group-size",
        type=int,
        choices=AFFINE_GROUP_SIZES,
        metavar="N",
        help="weights that share a scale (default: 64)",
    )
    add("--tasks", nargs="+", required=True, choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    add_example_options(parser)
    add("--streaming", action="store_true", help="read only the first rows of Hub copies")
    add("--json", type=Path, metavar="FILE", help="write the table's numbers to this file")
    add(
        "--published",
        choices=[*PUBLISHED, "none"],
        metavar="MODEL",
        help=f"published numbers to compare with: {', '.join(PUBLISHED)}, none (default: by "
        f"the checkpoint's name, else {MOXIN})",
    )
    return parser


def model_name(args: argparse.Namespace) -> str:
    """The model and its adapter or quantisation, for the answers file and the table."""
    parts = [args.model.rstrip("/")]
    if args.adapter_path is not None:
        parts.append(f"adapter {args.adapter_path}")
    if args.quantize is not None:
        parts.append(f"{args.quantize} bits")
        parts.append(f"group size {args.group_size or 64}")
    return ", ".join(parts)


def run(args: argparse.Namespace) -> None:
    """Run the evaluation that the command line describes.

    Raises:
        OSError, ValueError: one line that says what is wrong.
    """
    name = model_name(args)
    tasks = list(dict.fromkeys(args.tasks))
    # Read and check everything before loading the model.
    options = (args.data, args.image_folder, args.limit, args.streaming)
    examples, locations = examples_of(tasks, *options)
    file = AnswersFile(args.output or default_path(args.model))
    model, processor = load(
        args.model, args.quantize, args.group_size, adapter_path=args.adapter_path
    )
    answering = Answering(model, processor)
    work = Run(answering, name, weights_id(model), file, args.batch_size)
    results = {}
    try:
        for task in tasks:
            results[task] = work(task, TASKS[task], examples[task])
    except KeyboardInterrupt:
        print(
            f"stopped; answers are kept in {file.path}, run the same command again to resume",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    finally:
        published = args.published or match(args.model) or MOXIN
        published = None if published == "none" else published
        rows = report.rows(results, locations, published)
        if rows:
            report.print_table(name, rows, published)
            print(f"Answers: {file.path}")
        if args.json is not None and rows:
            report.save_json(args.json, name, rows, published)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Bad input ends with one line on standard error and status 1.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.quantize is None and args.group_size is not None:
        parser.error("--group-size would have no effect without --quantize")
    if args.streaming and args.limit is None:
        parser.error("--streaming reads only the first rows, so it needs --limit")
    try:
        run(args)
    except (OSError, ValueError) as error:
        return print_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
