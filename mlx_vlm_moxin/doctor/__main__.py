"""The command line of the doctor."""

import argparse
import json
import sys
from collections.abc import Sequence

from mlx_vlm_moxin.doctor import installation, machine
from mlx_vlm_moxin.doctor.check import FAILED, Check, run
from mlx_vlm_moxin.doctor.self_test import self_test


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m mlx_vlm_moxin doctor``."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_vlm_moxin doctor",
        description="Check the installation and say what fits this machine. The exit status is "
        "1 if something does not work.",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def examine() -> list[Check]:
    """Run all checks that can be run and return their results."""
    checks = [
        *installation.versions(),
        run("mlx", installation.backend),
        run("start-up file", installation.start_up),
        run("model package", installation.model_package),
    ]
    if checks[-1].status == FAILED:
        return checks  # the others need the model
    return [
        *checks,
        run("memory", machine.memory),
        run("disk", machine.disk),
        run("CUDA kernels", machine.kernels),
        run("self-test", self_test),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks; returns 0 if none failed, else 1."""
    args = build_parser().parse_args(argv)
    checks = examine()
    failed = [check.name for check in checks if check.status == FAILED]
    if args.json:
        results = {"ok": not failed, "checks": [check.to_dict() for check in checks]}
        print(json.dumps(results, indent=2))
    else:
        for check in checks:
            print("\n".join(check.lines()))
        print(f"Failed: {', '.join(failed)}" if failed else "All is well.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
