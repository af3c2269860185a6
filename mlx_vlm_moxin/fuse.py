"""``python -m mlx_vlm_moxin.fuse``: an adapter's update added to the weights it was trained on.

mlx-vlm has no such command. The options are four of ``mlx_lm.fuse``'s: ``--model``,
``--adapter-path``, ``--save-path`` and ``--dequantize``.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_vlm_moxin.checkpoints.messages import print_error
from mlx_vlm_moxin.checkpoints.stopping import Stopped, stoppable


class Rounding(NamedTuple):
    """The effect of quantising again on an adapter, relative to the weights' size.

    Attributes:
        update: change of the weights by the adapter.
        error: change of the adapted weights by quantising them.
    """

    update: float
    error: float


def _dequantized(layer: nn.QuantizedLinear) -> mx.array:
    settings = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    return mx.dequantize(layer.weight, layer.scales, layer.get("biases"), **settings)


def _square_sum(values: mx.array) -> float:
    return mx.sum(mx.square(values.astype(mx.float32))).item()


def rounding(model: nn.Module) -> Rounding | None:
    """Measure how much of an adapter remains when its layers are quantised again after fusing.

    Args:
        model: with the adapter, which is not fused yet.

    Returns:
        Root mean squares over all of the adapter's layers; None if none is quantised.
    """
    size = update = error = 0.0
    for _, module in model.named_modules():
        if not hasattr(module, "lora_a") or not isinstance(module.linear, nn.QuantizedLinear):
            continue
        base, moved = _dequantized(module.linear), module.fuse(True).weight
        size += _square_sum(base)
        update += _square_sum(moved - base)
        error += _square_sum(_dequantized(module.fuse(False)) - moved)
    if size == 0:
        return None
    return Rounding(math.sqrt(update / size), math.sqrt(error / size))


def fuse_adapter(model: nn.Module, dequantize: bool = False) -> int:
    """Replace every LoRA or DoRA layer of ``model`` by the equivalent plain layer, in place.

    Args:
        dequantize: keep these layers in floating point if the base is quantised. Otherwise they
            are quantised again like the base, which rounds the update.

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
        prog="python -m mlx_vlm_moxin fuse",
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
        from mlx_vlm_moxin import load
        from mlx_vlm_moxin.library.save import save_checkpoint

        with stoppable():
            model, processor = load(args.model, adapter_path=args.adapter_path)
            loss = None if args.dequantize else rounding(model)
            layers = fuse_adapter(model, args.dequantize)
            save_checkpoint(
                model,
                processor,
                args.save_path,
                made="An adapter was fused into weights",
                relation="finetune",
            )
    except Stopped:
        return print_error(Stopped(f"stopped; nothing incomplete is left at {args.save_path}"))
    except (OSError, ValueError) as error:
        return print_error(error)
    print(f"Written to {args.save_path}, {layers} layers fused")
    if loss is not None:
        print(
            f"The adapter moved the weights by {loss.update:.3f} of their size, quantising them "
            f"again by {loss.error:.3f}."
        )
        if loss.error > loss.update:
            print(
                "warning: quantising again outweighs the adapter, so that its effect may be lost; "
                "--dequantize keeps it",
                file=sys.stderr,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
