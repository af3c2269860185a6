"""``python -m mlx_vlm_moxin act``: the action for pictures and an instruction."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.models.moxin.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES
from mlx_vlm.utils import MODEL_CONVERSION_DTYPES

from mlx_vlm_moxin.actions.inputs import action_config
from mlx_vlm_moxin.actions.policy import Prediction, predict
from mlx_vlm_moxin.checkpoints.action_options import PRESETS, action_options, add_action_options
from mlx_vlm_moxin.checkpoints.messages import print_error
from mlx_vlm_moxin.library.load import load


def build_parser() -> argparse.ArgumentParser:
    """The options of ``act``."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_vlm_moxin act",
        description="Print the action that OpenVLA, OpenVLA-OFT or Moxin-VLA takes.",
    )
    add = parser.add_argument
    add("--model", required=True, help="directory or Hub id")
    add("--revision", help="branch, tag or commit of a Hub repository")
    add("--adapter-path", help="adapter that mlx_vlm.train has made")
    add(
        "--image",
        required=True,
        action="append",
        help="picture (file or URL); again for each further camera",
    )
    add("--instruction", required=True, help='such as "pick up the red cup"')
    add("--unnorm-key", help="data set whose statistics scale the action")
    add("--state", help="the robot's state, if the model reads it: numbers with commas between")
    add("--action-ids-only", action="store_true", help="let only the ids of actions compete")
    add("--json", action="store_true", help="one line: token_ids, normalized, action")
    add("--dtype", choices=MODEL_CONVERSION_DTYPES, help="compute in this type")
    add("--quantize", type=int, choices=AFFINE_BITS, metavar="BITS", help="of the decoder")
    add("--group-size", type=int, choices=AFFINE_GROUP_SIZES, metavar="N", help="default: 64")
    add_action_options(parser)
    return parser


def parse_state(text: str | None) -> list[float] | None:
    """The numbers of ``--state``.

    Raises:
        ValueError: if they are none.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f'--state takes numbers such as "0.1,0,-0.2", got {text!r}') from error


def as_json(prediction: Prediction) -> str:
    """One line; ``token_ids`` is null if a regression head gave the action."""
    values: dict[str, Any] = {
        name: None if (value := getattr(prediction, name)) is None else value.tolist()
        for name in ("token_ids", "normalized", "action")
    }
    return json.dumps(values)


def as_text(prediction: Prediction) -> str:
    """The action's values, a line for each action of a chunk."""
    return "\n".join(
        " ".join(f"{value: .6f}" for value in action) for action in np.atleast_2d(prediction.action)
    )


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _joined(arguments: Sequence[str]) -> list[str]:
    """``--state VALUE`` as one argument, so that a value with a minus is not read as an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined[-1:] == ["--state"]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def run(args: argparse.Namespace) -> Prediction:
    """Load the model and compute the action.

    Raises:
        OSError, ValueError: one line that says what is wrong.
    """
    state, options = parse_state(args.state), action_options(args)
    if options.is_parallel and options.num_images is None:
        # The number of pictures follows from the arguments.
        options = replace(options, num_images=len(args.image))
    model, processor = load(
        args.model,
        quantize=args.quantize,
        group_size=args.group_size,
        adapter_path=args.adapter_path,
        revision=args.revision,
        actions=options,
    )
    config = action_config(model)
    leave_state_out = state is None and config.proprio_dim is not None
    if leave_state_out:
        _warn("the model was trained with the robot's state; without --state it gets none")
    cameras = PRESETS[options.preset]["num_images"] if options.preset else config.num_images
    if len(args.image) == config.num_images != cameras:
        _warn(
            f"models of the preset {options.preset} see {cameras} pictures, not {len(args.image)}"
        )
    if args.dtype is not None:
        model.set_dtype(getattr(mx, args.dtype))
    return predict(
        model,
        processor,
        args.image if len(args.image) > 1 else args.image[0],
        args.instruction,
        args.unnorm_key,
        state=state,
        leave_state_out=leave_state_out,
        discrete=args.discrete,
        action_ids_only=args.action_ids_only,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command: unusable input ends it with one line and status 1."""
    args = build_parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
    try:
        prediction = run(args)
    except (OSError, ValueError) as error:
        return print_error(error)
    print(as_json(prediction) if args.json else as_text(prediction))
    return 0


if __name__ == "__main__":
    sys.exit(main())
