"""Train OpenVLA-tiny: ``python -m openvla_tiny.train``, run in the folder ``tests``.

Training starts from moxin-tiny (``start.py``). The towers' lesson goes on as there, which keeps
colour and shape apart in what they see. Weights stay float32 and are rounded to
bfloat16 in the checkpoint, which is written at every report of the validation loss. On an NVIDIA
GPU set ``MLX_USE_CUDA_GRAPHS=0``.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin import Model
from moxin_tiny.dataset import batches, normalise
from moxin_tiny.objective import PATCH_WEIGHT, Learner
from moxin_tiny.texts import PAD
from moxin_tiny.train import MAX_NORM, WARMUP, FlatWeights, load_state, save_state
from tokenizers import Tokenizer
from tqdm import tqdm

from . import CHECKPOINT, STATE, TRAINING
from .architecture import model_config
from .checkpoint import save_checkpoint
from .dataset import Batch, make_batch, start_worker
from .plots import plot_training
from .start import start_from_moxin_tiny
from .texts import train_tokenizer

# Pictures of the training kind that are not trained on: their seeds lie far above.
VALIDATION_START = 10**9
VALIDATION_BATCHES = 4


def token_losses(
    model: Model, features: mx.array, batch: Batch
) -> tuple[mx.array, mx.array, mx.array]:
    """Cross entropy of the next token, whether the likeliest is right, whether it is an action's.

    Args:
        features: of the towers, ``[P, N, D]``.

    Returns:
        Each ``[B, T - 1]``.
    """
    ids = mx.array(batch.ids)
    visual_tokens = model.multi_modal_projector(features)
    visual_tokens = mx.repeat(visual_tokens, len(batch.ids) // len(batch.pixels), axis=0)
    logits = model(ids[:, :-1], visual_tokens, cached_image_features=visual_tokens).logits
    targets = ids[:, 1:]
    entropy = nn.losses.cross_entropy(logits, targets)
    return entropy, logits.argmax(-1) == targets, mx.array(batch.actions[:, 1:])


class ActionLearner(Learner):
    """A model that starts from moxin-tiny, and the layers of the towers' lesson."""

    def __init__(self, model: Model, tokenizer: Tokenizer):
        super().__init__(model)
        start_from_moxin_tiny(model, tokenizer)

    def losses(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """Mean cross entropy of the actions' tokens, and that of the patches' classes."""
        features = self.model.vision_tower(normalise(mx.array(batch.pixels)))
        entropy, _, mask = token_losses(self.model, features, batch)
        actions = (entropy * mask).sum() / mask.sum()
        return actions, self.patch_loss(features, mx.array(batch.patches))


def validate(model: Model, held_out: list[Batch]) -> tuple[float, float]:
    """Mean loss of the actions' tokens, and the share of tokens that are right."""
    sums = np.zeros(3)
    for batch in held_out:
        features = model.vision_tower(normalise(mx.array(batch.pixels)))
        entropy, hits, mask = token_losses(model, features, batch)
        sums += np.array(mx.stack([(entropy * mask).sum(), (hits & mask).sum(), mask.sum()]))
    return sums[0] / sums[2], sums[1] / sums[2]


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train, save the checkpoint and return what was measured on the way."""
    mx.random.seed(args.seed)
    tokenizer = train_tokenizer()
    config = model_config(tokenizer.token_to_id(PAD))
    learner = ActionLearner(Model(config), tokenizer)
    model = learner.model
    learner.train()
    weights = FlatWeights(learner)
    rise = optim.linear_schedule(0.0, args.learning_rate, WARMUP)
    fall = optim.cosine_decay(args.learning_rate, max(1, args.steps - WARMUP))
    rate = optim.join_schedules([rise, fall], [WARMUP])
    optimizer = optim.AdamW(rate, betas=[0.9, 0.98], weight_decay=0.02, bias_correction=True)
    optimizer.init({"all": weights.vector})
    log: dict[str, Any] = {"seconds": 0, "step_loss": [], "step_validation_loss_right": []}
    if args.state.exists():
        optimizer.state, log = load_state(args.state, weights)
    curve, validation = log["step_loss"], log["step_validation_loss_right"]

    def loss_of(values: list[mx.array], batch: list[mx.array]) -> tuple[mx.array, mx.array]:
        weights.load(values)
        actions, patches = learner.losses(Batch(*batch))
        return actions + PATCH_WEIGHT * patches, actions

    def step(batch: list[mx.array]) -> mx.array:
        values = weights.split(weights.vector)
        (_, loss), gradients = mx.value_and_grad(loss_of)(values, batch)
        gradient = weights.join(gradients)
        gradient = gradient * mx.minimum(1.0, MAX_NORM / mx.linalg.norm(gradient))
        weights.vector = optimizer.apply_gradients({"all": gradient}, {"all": weights.vector})[
            "all"
        ]
        mx.async_eval(loss, weights.vector, optimizer.state)
        return loss

    steps, size, rows = args.steps, args.pictures, args.instructions
    done = curve[-1][0] if curve else 0
    firsts = [VALIDATION_START + n * 64 for n in range(VALIDATION_BATCHES)]
    tasks = [(first, 64, rows) for first in firsts]
    tasks += [(n * size, size, rows) for n in range(done, steps)]
    setup = tokenizer.to_str(), config.image_token_index, config.pad_token_id
    made = batches(tasks, args.workers, setup, make_batch, start_worker)
    held_out = [next(made) for _ in firsts]
    recent: list[mx.array] = []
    started = time.monotonic() - log["seconds"]
    with tqdm(initial=done, total=steps, unit="step", mininterval=2) as progress:
        for number, batch in enumerate(made, start=done + 1):
            recent.append(step([mx.array(part) for part in batch]))
            progress.update()
            if number % args.report == 0 or number == steps:
                curve.append([number, round(float(np.mean(np.array(recent))), 5)])
                recent = []
            if number % (args.report * 10) == 0 or number == steps:
                weights.load(weights.split(weights.vector))
                found = validate(model, held_out)
                validation.append([number, *np.round(found, 5).tolist()])
                progress.set_postfix(loss=f"{found[0]:.4f}", right=f"{found[1]:.1%}")
                save_checkpoint(model, tokenizer, args.output)
                log["seconds"] = round(time.monotonic() - started)
                save_state(args.state, weights, optimizer.state, log)
    args.state.unlink()
    return {
        "steps": steps,
        "pictures_per_step": size,
        "instructions_per_picture": rows,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "parameters": sum(value.size for _, value in tree_flatten(model.parameters())),
        "device": str(mx.device_info().get("device_name", mx.default_device())),
        **log,
    }


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="checkpoint folder")
    parser.add_argument("--log", type=Path, default=TRAINING, help="JSON file; a PNG beside it")
    parser.add_argument(
        "--state", type=Path, default=STATE, help="a run that was interrupted goes on from here"
    )
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--pictures", type=int, default=192, help="pictures per step")
    parser.add_argument("--instructions", type=int, default=8, help="rows per picture")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--report", type=int, default=50, help="steps per point of the loss curve")
    args = parser.parse_args()
    log = train(args)
    args.log.write_text(json.dumps(log) + "\n", encoding="utf-8")
    plot_training(log, args.log.with_suffix(".png"))


if __name__ == "__main__":
    main()
