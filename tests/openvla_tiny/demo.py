"""``make demo-act``: serve a converted checkpoint and run one episode with it.

``python -m openvla_tiny.demo MODEL``, run in the folder ``tests``: starts the server, drives an
episode through ``POST /act`` (``episode.py``), stops the server, prints the outcome.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from server_process import Server

from . import EPISODE
from .episode import run_episode
from .tasks import KINDS

SEED = 3


class ActionServer(Server):
    """This package's server, which has ``POST /act``."""

    command = ("mlx_vlm_moxin", "server")


def main() -> int:
    """Serve, play, print the outcome; 0 if the task was done."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="the checkpoint as convert has written it")
    parser.add_argument("--kind", choices=KINDS, default="into", help="of task")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--output", type=Path, default=EPISODE, help="GIF to write")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        ActionServer(args.model.resolve(), Path(folder) / "server.log") as server,
    ):
        succeeded, outcome = run_episode(server.url, args.kind, args.seed, args.output)
    print(f"{outcome}; see {args.output}")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
