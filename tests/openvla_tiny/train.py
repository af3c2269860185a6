"""Train OpenVLA-tiny: ``python -m openvla_tiny.train``, run in the folder ``tests``.

Training starts from moxin-tiny or an earlier checkpoint (``start.py``). Weights stay float32 and
are averaged over the last steps; the average is rounded to bfloat16 in the checkpoint, which is
written at every report of the validation loss. On an NVIDIA GPU set ``MLX_USE_CUDA_GRAPHS=0``.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin import Model
from moxin_tiny.dataset import batches
from moxin_tiny.texts import PAD
from moxin_tiny.train import MAX_NORM, FlatWeights, load_state, save_state
from safetensors import safe_open
from tqdm import tqdm

from . import CHECKPOINT, STATE, TRAINING
from .architecture import model_config
from .checkpoint import save_checkpoint
from .dataset import Batch, Encoder, make_batch, start_worker
from .objective import ActionLearner
from .plots import plot_training
from .start import start_from_checkpoint, start_from_moxin_tiny
from .texts import train_tokenizer

# Pictures of the training kind that are not trained on; their seeds are far higher.
VALIDATION_START = 10**9
VALIDATION_BATCHES = 4
LESSON_WEIGHT = 2.0
# Share of the training over which the learning rate rises.
RISE = 0.03
# Decay of the exponential moving average of the weights.
AVERAGING = 0.002


# Forked processes need no imports to make batches; macOS does not support fork well.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"


def load_log(state: Path) -> dict[str, Any]:
    """The log of an interrupted run, without MLX."""
    with safe_open(str(state), "numpy") as file:
        return json.loads(file.metadata()["log"])


def rounded(rows: list[mx.array]) -> list[float]:
    """The mean of rows of numbers, for the log."""
    mean = np.mean([np.array(row, np.float64) for row in rows], axis=0)
    return np.round(mean, 5).tolist()


def rate_at(progress: float, highest: float) -> float:
    """Learning rate after a share ``progress`` of the training: a rise, then half a cosine."""
    if progress < RISE:
        return highest * progress / RISE
    return highest * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - RISE) / (1 - RISE))))


def make_step(
    learner: ActionLearner,
    weights: FlatWeights,
    optimizer: optim.Optimizer,
    dtype: mx.Dtype,
    is_compiled: bool,
) -> Callable[..., tuple[mx.array, mx.array, mx.array]]:
    """One step of training: weights, their average and a batch to new weights, average, losses."""

    def loss_of(values: list[mx.array], batch: list[mx.array]) -> tuple[mx.array, mx.array]:
        weights.load([value.astype(dtype) for value in values])
        actions, lesson = learner.losses(Batch(*batch))
        return actions + LESSON_WEIGHT * lesson, mx.stack([actions, lesson])

    def step(
        vector: mx.array, average: mx.array, *batch: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        (_, losses), gradients = mx.value_and_grad(loss_of)(weights.split(vector), list(batch))
        gradient = weights.join(gradients)
        gradient = gradient * mx.minimum(1.0, MAX_NORM / mx.linalg.norm(gradient))
        vector = optimizer.apply_gradients({"all": gradient}, {"all": vector})["all"]
        return vector, average + AVERAGING * (vector - average), losses

    if is_compiled:
        return partial(mx.compile, inputs=optimizer.state, outputs=optimizer.state)(step)
    return step


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train, save the checkpoint and return the log of measurements."""
    tokenizer = train_tokenizer()
    config = model_config(tokenizer.token_to_id(PAD))
    setup = tokenizer.to_str(), config.image_token_index, config.pad_token_id
    log: dict[str, Any] = {"seconds": 0, "step_losses": [], "step_validation": []}
    if args.state.exists():
        log = load_log(args.state)
    curve, validation = log["step_losses"], log["step_validation"]
    steps, size, rows = args.steps, args.pictures, args.instructions
    done = curve[-1][0] if curve else 0
    first_table = args.seed * 10**8
    tasks = chain(
        ((VALIDATION_START + n * 64, 64, rows) for n in range(VALIDATION_BATCHES)),
        ((first_table + n * size, size, rows) for n in range(done, steps)),
    )
    # The processes are forked here, before MLX uses a GPU.
    made = batches(tasks, args.workers, setup, make_batch, start_worker, START_METHOD)
    held_out = [next(made) for _ in range(VALIDATION_BATCHES)]

    mx.random.seed(args.seed)
    start = Encoder(tokenizer, *setup[1:]).start
    model = Model(config)
    if args.start:
        start_from_checkpoint(model, args.start)
    else:
        start_from_moxin_tiny(model, tokenizer)
    learner = ActionLearner(model, start)
    learner.train()
    weights = FlatWeights(learner)
    average = weights.vector
    optimizer = optim.AdamW(0.0, betas=[0.9, 0.98], weight_decay=0.02, bias_correction=True)
    optimizer.init({"all": weights.vector})
    if args.state.exists():
        optimizer.state, _ = load_state(args.state, weights)
        average = optimizer.state.pop("average")
    step = make_step(learner, weights, optimizer, getattr(mx, args.dtype), args.compile)
    held_out = [Batch(*map(mx.array, batch)) for batch in held_out]
    recent: list[mx.array] = []
    vector = weights.vector
    started = None
    with tqdm(initial=done, total=steps, unit="step", mininterval=2) as progress:
        for number, batch in enumerate(made, start=done + 1):
            share = number / steps
            if args.seconds and started is not None:
                share = max(share, (time.monotonic() - started) / args.seconds)
            is_last = number == steps or share >= 1
            optimizer.learning_rate = rate_at(share, args.learning_rate)
            vector, average, losses = step(vector, average, *map(mx.array, batch))
            mx.async_eval(losses, vector, average, optimizer.state)
            if started is None:
                # On an NVIDIA GPU the first step takes minutes, while kernels are compiled.
                mx.eval(losses)
                started = time.monotonic() - log["seconds"]
            recent.append(losses)
            progress.update()
            if number % args.report == 0 or is_last:
                curve.append([number, *rounded(recent)])
                recent = []
            if number % (args.report * 10) == 0 or is_last:
                weights.load(weights.split(average))
                found = rounded([learner.validate(batch) for batch in held_out])
                validation.append([number, *found])
                log["seconds"] = round(time.monotonic() - started)
                progress.set_postfix(
                    train=f"{curve[-1][1]:.4f}",
                    lesson=f"{curve[-1][2]:.4f}",
                    loss=f"{found[0]:.4f}",
                    tokens=f"{found[1]:.1%}",
                    actions=f"{found[2]:.1%}",
                )
                save_checkpoint(model, tokenizer, args.output)
                weights.vector = vector
                save_state(args.state, weights, {**optimizer.state, "average": average}, log)
            if is_last:
                break
    made.close()
    args.state.unlink()
    return {
        "steps": number,
        "pictures_per_step": size,
        "instructions_per_picture": rows,
        "learning_rate": args.learning_rate,
        "start": args.start.name if args.start else "moxin_tiny",
        "seed": args.seed,
        "parameters": sum(value.size for _, value in tree_flatten(model.parameters())),
        "device": str(mx.device_info().get("device_name", mx.default_device())),
        **log,
    }


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="checkpoint folder")
    parser.add_argument(
        "--start", type=Path, help="checkpoint of an earlier run to start from; else moxin-tiny"
    )
    parser.add_argument("--log", type=Path, default=TRAINING, help="JSON file; a PNG beside it")
    parser.add_argument(
        "--state", type=Path, default=STATE, help="a run that was interrupted goes on from here"
    )
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--pictures", type=int, default=192, help="pictures per step")
    parser.add_argument("--instructions", type=int, default=12, help="rows per picture")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seconds", type=float, help="end, and have the rate fall, by this time")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="compile a step (mx.compile)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--report", type=int, default=50, help="steps per point of the loss curve")
    args = parser.parse_args()
    log = train(args)
    args.log.write_text(json.dumps(log) + "\n", encoding="utf-8")
    plot_training(log, args.log.with_suffix(".png"))


if __name__ == "__main__":
    main()
