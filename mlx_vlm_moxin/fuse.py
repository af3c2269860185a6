"""``python -m mlx_vlm_moxin.fuse``: an adapter's update added to the weights it was trained on.

The options are those of ``mlx_lm.fuse``; mlx-vlm has no such command.
"""

import argparse
import sys
from pathlib import Path

import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_vlm_moxin.checkpoints.messages import print_error


def fuse_adapter(model: nn.Module, dequantize: bool = False) -> int:
    """Replace every LoRA or DoRA layer of ``model`` by the plain layer it amounts to, in place.

    Args:
        dequantize: leave these layers in floating point where the base is quantised.
            Otherwise they are quantised again as the base is, which rounds the update.

    Returns:
        The number of layers replaced.
    """
    fused = [
        (name, module.fuse(dequantize))
        for name, module in model.named_modules()
        if hasattr(module, "lora_a")
    ]
    model.update_modules(tree_unflatten(fused))
    return len(fused)


def build_parser() -> argparse.ArgumentParser:
    """The options, named as those of ``mlx_lm.fuse``."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_vlm_moxin.fuse",
        description="Write a checkpoint with an adapter's update in its weights",
    )
    parser.add_argument("--model", required=True, help="The base: directory or Hub id")
    parser.add_argument("--adapter-path", required=True, help="What mlx_vlm.train wrote")
    parser.add_argument("--save-path", default="fused_model", help="Directory to make")
    parser.add_argument(
        "--dequantize",
        action="store_true",
        help="Leave fused layers in floating point where the base is quantised",
    )
    return parser


def main() -> int:
    """Run the command; returns the exit status.

    Bad input ends with one line on standard error and status 1.
    """
    args = build_parser().parse_args()
    try:
        if Path(args.save_path).exists():
            raise FileExistsError(f"{args.save_path} exists; choose another --save-path")
        from mlx_vlm_moxin import load, save_quantized

        model, processor = load(args.model, adapter_path=args.adapter_path)
        layers = fuse_adapter(model, args.dequantize)
        save_quantized(model, processor, args.save_path)
    except (OSError, ValueError) as error:
        return print_error(error)
    print(f"Written to {args.save_path}, {layers} layers fused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
