"""``python -m mlx_vlm_moxin convert``: any source of Moxin to a directory that mlx-vlm loads."""

import argparse
import errno
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.utils import disable_progress_bars, validate_repo_id
from mlx_vlm.convert import QUANT_RECIPES
from mlx_vlm.quant_utils import QUANTIZATION_MODE_DEFAULTS
from mlx_vlm.utils import MODEL_CONVERSION_DTYPES

from mlx_vlm_moxin.checkpoints.language_models import licence_note
from mlx_vlm_moxin.checkpoints.messages import print_error
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.checkpoints.stopping import Stopped, stoppable
from mlx_vlm_moxin.conversion.baseline import loadable_source
from mlx_vlm_moxin.conversion.convert import Conversion, convert
from mlx_vlm_moxin.conversion.evaluation import (
    add_evaluation_options,
    evaluate,
    planned_examples,
)
from mlx_vlm_moxin.conversion.source_files import SourceFiles, add_source_options
from mlx_vlm_moxin.conversion.sweep import main as sweep
from mlx_vlm_moxin.conversion.upload import LOG_IN, upload
from mlx_vlm_moxin.conversion.verify.cost import measure_cost
from mlx_vlm_moxin.conversion.verify.report import FILE_NAME, Verification
from mlx_vlm_moxin.conversion.verify.samples import find_samples
from mlx_vlm_moxin.evals.example import Example

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def configure_parser() -> argparse.ArgumentParser:
    """The options of ``mlx_vlm.convert`` under the same names, and those of this package."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_vlm_moxin convert",
        description="Convert a Moxin checkpoint to MLX. Sources: a native Prismatic run "
        "directory, an HF-converted checkpoint, an OminiX export, or a conversion of one of "
        "these. `python -m mlx_vlm_moxin convert sweep --help`: size against quality for "
        "several widths.",
    )
    add = parser.add_argument
    add("--hf-path", "--model", required=True, help="local directory or Hub repository")
    add("--mlx-path", default="mlx_model", help="directory to write (default: %(default)s)")
    add("--revision", help="branch, tag or commit of a Hub repository")
    add("--overwrite", action="store_true", help="replace a model at --mlx-path")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")
    add("--upload-repo", help="Hub repository to upload the result to")

    group = parser.add_argument_group("quantisation")
    add = group.add_argument
    add("-q", "--quantize", action="store_true", help="quantise decoder and output head")
    add("--q-group-size", type=int, help="weights per scale: 32, 64 (default) or 128")
    add("--q-bits", type=int, help="bits per weight: 2, 3, 4 (default), 5, 6 or 8")
    add("--q-mode", choices=list(QUANTIZATION_MODE_DEFAULTS), default="affine")
    add("--quant-predicate", choices=QUANT_RECIPES, help="mixed-bit recipe")
    add("--quant-method", choices=["rtn", "awq"], default="rtn")
    add("--calibration", choices=["text", "multimodal"], default="text", help="AWQ's inputs")
    add("--calibration-data", help="directory of pictures for --calibration multimodal")
    add("--dtype", choices=MODEL_CONVERSION_DTYPES, help="dtype of what is not quantised")
    add("-d", "--dequantize", action="store_true", help="unpack a quantised source")

    group = parser.add_argument_group("verification")
    add = group.add_argument
    add(
        "--verify",
        action=argparse.BooleanOptionalAction,
        help="compare source and result (default: if the source fits in memory)",
    )
    add("--verify-images", type=Path, help="directory of pictures to compare on")

    add_evaluation_options(parser)
    add_source_options(parser)
    return parser


def _check_upload(repo_id: str) -> None:
    """Check before a long conversion that its upload can work."""
    validate_repo_id(repo_id)
    if get_token() is None:
        raise ValueError(f"--upload-repo: there is no Hugging Face token; {LOG_IN}")


def _show_verification(verification: Verification, directory: Path, quiet: bool) -> None:
    verification.save(directory / FILE_NAME)
    if not quiet:
        verification.print_table()
    elif verification.warning is not None:
        print(f"warning: {verification.warning}", file=sys.stderr)


def _finish(
    conversion: Conversion,
    files: SourceFiles,
    examples: dict[str, list[Example]] | None,
    args: argparse.Namespace,
) -> None:
    """Verify, evaluate and upload a conversion that is in place, and complete its model card."""
    place = conversion.directory.resolve().parent
    verification = evaluation = None
    with ExitStack() as stack:
        # Created only when verification or evaluation first needs it.
        baseline = cache(
            lambda: stack.enter_context(
                loadable_source(conversion.source, files, place, args.quiet)
            )
        )
        verification = measure_cost(
            conversion, baseline, wanted=args.verify, images=args.verify_images, quiet=args.quiet
        )
        if verification is not None:
            _show_verification(verification, conversion.directory, args.quiet)
        try:
            if examples is not None:
                evaluation = evaluate(baseline(), conversion.directory, examples, args)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"not evaluated: {error}; the model is whole in {conversion.directory}"
            ) from error
        finally:
            if verification is not None or evaluation is not None:
                replace(
                    conversion.card,
                    verification=None if verification is None else verification.markdown(),
                    evaluation=None if evaluation is None else evaluation.markdown(),
                ).write(conversion.directory, args.upload_repo)
    if args.verify and verification.warning is not None:
        raise ValueError(f"--verify: {verification.warning}. It is in {conversion.directory}")
    if args.upload_repo:
        upload(conversion.directory, args.upload_repo, args.quiet)


def run(args: argparse.Namespace) -> None:
    """Run the parsed command line.

    Raises:
        OSError, ValueError, RuntimeError: one line that says what is wrong.
        Stopped: if a signal ended the process; the message says what was kept.
    """
    options = QuantizeOptions(
        **{field.name: getattr(args, field.name) for field in fields(QuantizeOptions)}
    )
    options.check()
    if args.verify_images is not None:
        find_samples(args.verify_images)
    if args.upload_repo:
        _check_upload(args.upload_repo)
    examples = planned_examples(args)
    files = SourceFiles.from_arguments(args)
    try:
        conversion = convert(
            files,
            args.mlx_path,
            options,
            overwrite=args.overwrite,
            quiet=args.quiet,
            upload_repo=args.upload_repo,
        )
    except Stopped:
        raise Stopped(
            f"nothing incomplete is left at {args.mlx_path}; run the same command again, "
            "finished downloads are kept"
        ) from None
    if not args.quiet:
        print(
            f"Converted {conversion.source.kind} to {conversion.directory}: "
            f"{conversion.bits_per_weight:.3f} bits per weight"
        )
        if note := licence_note(conversion.source.config.llm_backbone_id):
            print(note)
    try:
        _finish(conversion, files, examples, args)
    except Stopped:
        raise Stopped(f"the model is whole in {conversion.directory}; see --no-verify") from None


def _convert(arguments: Sequence[str]) -> int:
    args = configure_parser().parse_args(arguments)
    if args.quiet:
        disable_progress_bars()
    try:
        run(args)
    except Stopped as error:
        return print_error(Stopped(f"stopped; {error}"))
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            error = OSError(
                f"{error.strerror} while writing; {args.mlx_path} is unchanged. "
                "Free some space or choose another --mlx-path"
            )
        return print_error(error)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Bad input ends with one line on standard error and status 1.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with stoppable():
        if arguments[:1] == ["sweep"]:
            return sweep(arguments[1:])
        return _convert(arguments)


if __name__ == "__main__":
    sys.exit(main())
