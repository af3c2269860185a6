"""Command line of the generator; ``python -m generate --help``."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from transformers.utils import logging

from .bf16 import bf16_errors
from .check import compare
from .goldens import compute
from .layouts import read_json, write_json
from .new import write_data_set

TINY = Path(__file__).parent.parent / "tiny28"


def json_object(text: str) -> dict:
    """Argument type: a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"not a JSON object: {text}")
    return value


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m generate", description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument(
        "--check", action="store_true", help="recompute the goldens and compare with the stored"
    )
    mode.add_argument(
        "--bf16", action="store_true", help="measure PyTorch in bfloat16; write bf16_errors.json"
    )
    mode.add_argument(
        "--new", type=int, metavar="SEED", help="write a new data set with random weights"
    )
    parser.add_argument(
        "--data", type=Path, default=TINY, help="data set of --check and --bf16 (default: tiny28)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder that --new makes")
    parser.add_argument(
        "--sizes",
        type=json_object,
        default={},
        metavar="JSON",
        help="""sizes of --new where they differ from tiny28's, named as in "spec" of its
        goldens.json, e.g. '{"px": 42, "siglip": {"embed_dim": 96}}'""",
    )
    arguments = parser.parse_args()
    if (arguments.new is None) != (arguments.out is None):
        parser.error("--new SEED and --out DIR belong together")
    if arguments.sizes and arguments.new is None:
        parser.error("--sizes is for --new")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    logging.set_verbosity_error()
    try:
        if arguments.new is not None:
            write_data_set(arguments.new, arguments.out, TINY, arguments.sizes)
            return 0
        goldens = read_json(arguments.data / "goldens.json")
        stored = dict(np.load(arguments.data / "goldens.npz"))
        if arguments.check:
            return 0 if compare(stored, goldens, *compute(arguments.data, goldens)) else 1
        errors = bf16_errors(arguments.data, stored, goldens)
        write_json(arguments.data / "bf16_errors.json", errors)
        print(json.dumps(errors["overall"], indent=2))
    except (OSError, RuntimeError, ValueError) as error:
        print(f"python -m generate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
