"""``python -m mlx_vlm_moxin COMMAND``: mlx-vlm's commands with Moxin registered, and ours.

They need no start-up file, so they also run where Python reads none. mlx-vlm's commands in
``LOADING`` also accept ``--quantize`` and ``--group-size``.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from mlx_vlm_moxin import SWITCH, __version__, register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mlx_vlm_moxin.checkpoints.action_options import ActionOptions

# Command -> (module with its main(), description).
COMMANDS = {
    "generate": ("mlx_vlm.generate", "answer a question about a picture"),
    "chat": ("mlx_vlm.chat", "talk in the terminal"),
    "chat_ui": ("mlx_vlm.chat_ui", "talk in the browser"),
    "server": ("mlx_vlm.server", "serve OpenAI's and Anthropic's APIs"),
    "act": ("mlx_vlm_moxin.actions.command", "the action of a robot: OpenVLA, OpenVLA-OFT"),
    "train": ("mlx_vlm.train", "train adapters or all weights"),
    "fuse": ("mlx_vlm_moxin.fuse", "add an adapter's update to the weights"),
    "convert": ("mlx_vlm_moxin.conversion.command_line", "convert any Moxin checkpoint to MLX"),
    "upload": ("mlx_vlm_moxin.conversion.upload", "put a converted model on the Hugging Face Hub"),
    "eval": ("mlx_vlm_moxin.evals.__main__", "measure the benchmarks of Moxin's report"),
    "models": ("mlx_vlm_moxin.library.models", "list the models that are supported"),
    "bench": ("mlx_vlm_moxin.bench.__main__", "measure speed and memory on this machine"),
    "doctor": ("mlx_vlm_moxin.doctor.__main__", "check the installation, say what fits"),
}
LOADING = ("generate", "chat", "chat_ui", "server")


def _command_parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m mlx_vlm_moxin",
        description=f"mlx-vlm with Moxin-7B VLM. Commands:\n{lines}",
        epilog="python -m mlx_vlm_moxin COMMAND --help: the command's options",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS)
    parser.add_argument("--version", action="version", version=f"mlx-vlm-moxin {__version__}")
    return parser


def quantize_parser(command: str) -> argparse.ArgumentParser:
    """The options that this package adds to a stock command."""
    from mlx_vlm.models.moxin.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES

    parser = argparse.ArgumentParser(
        prog=f"python -m mlx_vlm_moxin {command}",
        usage="%(prog)s [--quantize BITS] [--group-size N] [options of mlx_vlm]",
        description="Quantise Moxin's decoder in memory while it is loaded:",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--quantize",
        type=int,
        choices=AFFINE_BITS,
        metavar="BITS",
        help=f"bits per weight: {', '.join(map(str, AFFINE_BITS))} (default: as stored)",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=AFFINE_GROUP_SIZES,
        metavar="N",
        help=f"weights that share a scale: {', '.join(map(str, AFFINE_GROUP_SIZES))} (default: 64)",
    )
    if command == "server":
        from mlx_vlm_moxin.checkpoints.action_options import add_action_options

        add_action_options(parser)
        parser.add_argument("--unnorm-key", help="of requests to /act that name no data set")
        parser.add_argument(
            "--action-ids-only", action="store_true", help="let only the ids of actions compete"
        )
    return parser


def split_arguments(command: str, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The added options, and the arguments for the stock command, untouched.

    Exits with a line on standard error if a value does not exist or has no effect.
    """
    parser = quantize_parser(command)
    added, stock = parser.parse_known_args(arguments)
    if added.quantize is None and added.group_size is not None:
        parser.error("--group-size would have no effect without --quantize")
    if added.quantize is not None and "--reload" in stock:
        parser.error("--quantize has no effect on the process that --reload starts; drop one")
    if {"-h", "--help"} & {*stock}:
        parser.print_help()
        print("\nOptions of mlx_vlm:\n")
    return added, stock


def _serving(added: argparse.Namespace) -> "ActionOptions":
    """The options for ``/act``; settings of requests are stored where requests read them."""
    from mlx_vlm_moxin.actions.serving import defaults
    from mlx_vlm_moxin.checkpoints.action_options import action_options

    defaults.unnorm_key, defaults.discrete = added.unnorm_key, added.discrete
    defaults.action_ids_only = added.action_ids_only
    return action_options(added)


def main() -> int | None:
    """Run the command named by the first argument with the rest; returns the exit status."""
    register()
    parser = _command_parser()
    command = parser.parse_args(sys.argv[1:2]).command
    if os.environ.get(SWITCH, "0") not in ("", "0") and command != "doctor":
        parser.error(f"{SWITCH} is set, which switches this package off")
    arguments, module = sys.argv[2:], COMMANDS[command][0]
    added = argparse.Namespace(quantize=None, group_size=None)
    if command in LOADING:
        added, arguments = split_arguments(command, arguments)
    if module.startswith("mlx_vlm."):
        from mlx_vlm_moxin.library import load
        from mlx_vlm_moxin.plugin import command_errors, replacements, upstream

        options = load.quantize_options(added.quantize, added.group_size)
        settings = {} if command != "server" else {"actions": _serving(added)}
        replacements.apply(upstream.COMMAND, options=options, **settings)
        command_errors.install()
    if command == "server":
        from mlx_vlm_moxin.plugin import server_command

        arguments = server_command.allow(arguments)
    sys.argv[:] = [f"python -m mlx_vlm_moxin {command}", *arguments]
    return importlib.import_module(module).main()


if __name__ == "__main__":
    sys.exit(main())
