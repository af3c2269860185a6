"""``python -m mlx_vlm_moxin convert sweep``: size against quality of one source at several widths.

The source answers once; each width is converted and compared with those answers. Each
finished width is written to ``sweep.json`` immediately, so an interrupted sweep can resume.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_vlm.models.moxin.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES

from mlx_vlm_moxin.checkpoints.messages import format_size, print_error
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.conversion.baseline import loadable_source
from mlx_vlm_moxin.conversion.convert import convert
from mlx_vlm_moxin.conversion.source_files import SourceFiles, add_source_options
from mlx_vlm_moxin.conversion.sweep_plot import plot
from mlx_vlm_moxin.conversion.verify.compare import Reference, reference
from mlx_vlm_moxin.conversion.verify.report import FILE_NAME
from mlx_vlm_moxin.conversion.verify.samples import find_samples
from mlx_vlm_moxin.library.plotting import check_plotting

TABLE_FILE = "sweep.json"
PICTURE_FILE = "sweep.png"


def configure_parser() -> argparse.ArgumentParser:
    """The options of a sweep; source options have the same names as in ``convert``."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_vlm_moxin convert sweep",
        description="Convert a source at several bit widths, compare each with the source, and "
        f"write {TABLE_FILE} and {PICTURE_FILE} (size against KL divergence).",
    )
    add = parser.add_argument
    add("--hf-path", "--model", required=True, help="local directory or Hub repository")
    add("--output", type=Path, required=True, help="directory for the conversions and results")
    add("--bits", type=int, nargs="+", choices=AFFINE_BITS, default=[3, 4, 6, 8])
    add("--group-size", type=int, nargs="+", choices=AFFINE_GROUP_SIZES, default=[64])
    add("--verify-images", type=Path, help="directory of pictures to compare on")
    add("--overwrite", action="store_true", help="replace what an earlier sweep left there")
    add("--quiet", action="store_true", help="print nothing but errors")
    add("--revision", help="branch, tag or commit of a Hub repository")
    add_source_options(parser)
    return parser


def _name(bits: int, group_size: int) -> str:
    return f"{bits}bit-g{group_size}"


def _write_table(output: Path, settings: dict[str, Any], rows: dict[str, dict]) -> None:
    content = {"settings": settings, "rows": list(rows.values())}
    partial = output / f".{TABLE_FILE}.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(output / TABLE_FILE)


def _earlier_rows(args: argparse.Namespace, settings: dict[str, Any]) -> dict[str, dict]:
    """Rows of the same sweep from an earlier, interrupted run, by directory name.

    Raises:
        ValueError: if the output directory holds another sweep or other models.
    """
    table = args.output / TABLE_FILE
    if args.overwrite:
        return {}
    if not table.exists():
        names = [_name(bits, size) for bits in args.bits for size in args.group_size]
        taken = [args.output / name for name in names if (args.output / name).exists()]
        if taken:
            raise ValueError(f"{taken[0]} exists; choose another --output or give --overwrite")
        return {}
    try:
        content = json.loads(table.read_text(encoding="utf-8"))
        found = {_name(row["bits"], row["group_size"]): row for row in content["rows"]}
        is_same = content["settings"] == settings
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{table} is damaged; remove it or give --overwrite") from None
    if not is_same:
        raise ValueError(
            f"{table} belongs to another sweep; choose another --output or give --overwrite"
        )
    return {name: row for name, row in found.items() if (args.output / name).is_dir()}


def _measure(
    args: argparse.Namespace, files: SourceFiles, asked: Reference, bits: int, group_size: int
) -> dict[str, Any]:
    """Convert at one width, compare, and save the comparison next to the conversion."""
    options = QuantizeOptions(quantize=True, q_bits=bits, q_group_size=group_size)
    target = args.output / _name(bits, group_size)
    # Anything already there was left by an interrupted sweep, or --overwrite was given.
    conversion = convert(files, target, options, overwrite=True, quiet=args.quiet)
    verification = asked.compare(conversion.directory)
    verification.save(conversion.directory / FILE_NAME)
    replace(conversion.card, verification=verification.markdown()).write(conversion.directory)
    summary = verification.to_dict()
    del summary["samples"]
    return {"bits": bits, "group_size": group_size, **summary}


def _line(row: dict[str, Any]) -> str:
    def shown(value: float | None, form: str) -> str:
        return "not finite" if value is None else format(value, form)

    text = (
        f"{row['bits']} bits, group size {row['group_size']}: {format_size(row['size_bytes'])}, "
        f"{row['bits_per_weight']:.2f} bits per weight, KL mean {shown(row['kl_mean'], '.5f')}, "
        f"max {shown(row['kl_max'], '.5f')}, top-1 {row['top1_agreement']:.1%}, "
        f"perplexity ratio {shown(row['perplexity_ratio'], '.4f')}"
    )
    return text if row["warning"] is None else f"{text}\n  warning: {row['warning']}"


def sweep(args: argparse.Namespace) -> None:
    """Run a sweep.

    Args:
        args: what ``configure_parser`` parsed.

    Raises:
        OSError, ValueError, RuntimeError: one line that says what is wrong.
    """
    check_plotting("The picture of a sweep")
    find_samples(args.verify_images)
    files = SourceFiles.from_arguments(args)
    settings = {
        "model": args.hf_path,
        "revision": args.revision,
        "verify_images": None if args.verify_images is None else str(args.verify_images),
    }
    rows = _earlier_rows(args, settings)
    missing = [
        (bits, size)
        for size in args.group_size
        for bits in args.bits
        if _name(bits, size) not in rows
    ]
    if missing:
        source = files.open()
        args.output.mkdir(parents=True, exist_ok=True)
        _write_table(args.output, settings, rows)
        with (
            loadable_source(source, files, args.output, args.quiet) as directory,
            reference(directory, args.verify_images, args.quiet) as asked,
        ):
            for bits, size in missing:
                rows[_name(bits, size)] = _measure(args, files, asked, bits, size)
                _write_table(args.output, settings, rows)
    plot(list(rows.values()), args.output / PICTURE_FILE)
    if not args.quiet:
        print("\n".join(map(_line, rows.values())))
        print(f"Wrote {args.output / TABLE_FILE} and {args.output / PICTURE_FILE}")


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status.

    Bad input ends with one line on standard error and status 1.
    """
    args = configure_parser().parse_args(argv)
    try:
        sweep(args)
    except KeyboardInterrupt:
        message = "stopped; run the same command again, finished widths are kept"
        return print_error(KeyboardInterrupt(message))
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        return print_error(error)
    return 0
