"""Train moxin-tiny: ``python -m moxin_tiny.train``, run in the folder ``tests``.

Everything is trained at once, on pictures drawn as needed. Weights are float32 during
training and rounded to bfloat16 in the checkpoint, which is written at every validation. On
an NVIDIA GPU set ``MLX_USE_CUDA_GRAPHS=0``: with CUDA graphs, MLX 0.32.4 stopped with an
illegal memory access after some hundred steps.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_vlm.models.moxin import Model
from tqdm import tqdm

from . import CHECKPOINT, STATE, TRAINING
from .architecture import model_config
from .checkpoint import save_checkpoint
from .dataset import Batch, balanced_questions, batches, picture_hash
from .drawing import draw
from .objective import PATCH_WEIGHT, Learner, answers_right
from .plots import plot_training
from .scenes import draw_scene
from .texts import PAD, train_tokenizer

VALIDATION_PICTURES = 256
TEST_PER_KIND = 300
MAX_NORM = 1.0
WARMUP = 300
# In floats: every weight starts at a multiple of 128 bytes.
ALIGN = 32


class FlatWeights:
    """A module's weights as one vector.

    An optimizer step is then a few large operations instead of thousands of small ones,
    which would take most of a step's time on a GPU.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._names, values = zip(*tree_flatten(module.trainable_parameters()))
        self._shapes = [value.shape for value in values]
        self._sizes = [value.size for value in values]
        self.vector = self.join(values)

    def join(self, values: Sequence[mx.array]) -> mx.array:
        """Arrays of the weights' shapes as one vector, each of them aligned."""
        flat = [value.reshape(-1) for value in values]
        return mx.concatenate(
            [mx.pad(v, (0, -v.size % ALIGN)) if v.size % ALIGN else v for v in flat]
        )

    def split(self, vector: mx.array) -> list[mx.array]:
        """The inverse of ``join``."""
        ends = np.cumsum([size + -size % ALIGN for size in self._sizes]).tolist()
        parts = mx.split(vector, ends[:-1])
        return [p[:n].reshape(shape) for p, n, shape in zip(parts, self._sizes, self._shapes)]

    def load(self, values: Sequence[mx.array]) -> None:
        """Give the module these weights."""
        self._module.update(tree_unflatten(list(zip(self._names, values))))


def forbidden_hashes() -> frozenset[bytes]:
    """Hashes of the test set's pictures, which training must not contain."""
    indices = {index for index, _ in balanced_questions("test", TEST_PER_KIND)}
    return frozenset(picture_hash(draw(draw_scene("test", index))) for index in indices)


def save_state(file: Path, weights: FlatWeights, state: dict[str, Any], log: dict) -> None:
    """Write what ``load_state`` needs to continue from here."""
    arrays = {"vector": weights.vector, **dict(tree_flatten(state))}
    part = file.with_suffix(".part.safetensors")
    mx.save_safetensors(str(part), arrays, metadata={"log": json.dumps(log)})
    part.replace(file)


def load_state(file: Path, weights: FlatWeights) -> tuple[dict[str, Any], dict]:
    """Weights, optimizer state and log of an interrupted run."""
    arrays, metadata = mx.load(str(file), return_metadata=True)
    weights.vector = arrays.pop("vector")
    return tree_unflatten(list(arrays.items())), json.loads(metadata["log"])


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train, save the checkpoint and return the log of measurements."""
    mx.random.seed(args.seed)
    tokenizer = train_tokenizer()
    config = model_config(tokenizer.token_to_id(PAD))
    learner = Learner(Model(config))
    weights = FlatWeights(learner)
    rise = optim.linear_schedule(0.0, args.learning_rate, WARMUP)
    fall = optim.cosine_decay(args.learning_rate, max(1, args.steps - WARMUP))
    rate = optim.join_schedules([rise, fall], [WARMUP])
    optimizer = optim.AdamW(rate, betas=[0.9, 0.98], weight_decay=0.02, bias_correction=True)
    optimizer.init({"all": weights.vector})
    log = {"seconds": 0, "step_answer_loss_patch_loss": [], "step_validation_loss_exact_match": []}
    curve, validation = log["step_answer_loss_patch_loss"], log["step_validation_loss_exact_match"]
    if args.state.exists():
        optimizer.state, log = load_state(args.state, weights)
        curve, validation = (log[key] for key in list(log)[1:])

    def loss_of(values: list[mx.array], batch: list[mx.array]) -> tuple[mx.array, mx.array]:
        weights.load(values)
        answers, patches = learner.losses(Batch(*batch))
        return answers + PATCH_WEIGHT * patches, mx.stack([answers, patches])

    def step(batch: list[mx.array]) -> mx.array:
        values = weights.split(weights.vector)
        (_, losses), gradients = mx.value_and_grad(loss_of)(values, batch)
        gradient = weights.join(gradients)
        gradient = gradient * mx.minimum(1.0, MAX_NORM / mx.linalg.norm(gradient))
        updated = optimizer.apply_gradients({"all": gradient}, {"all": weights.vector})
        weights.vector = updated["all"]
        mx.async_eval(losses, weights.vector, optimizer.state)
        return losses

    steps, size, asked = args.steps, args.pictures, args.questions
    done = curve[-1][0] if curve else 0
    held_out = [("validation", start, 64, 4, 1) for start in range(0, VALIDATION_PICTURES, 64)]
    tasks = held_out + [("train", n * size, size, asked, asked) for n in range(done, steps)]
    setup = tokenizer.to_str(), config.image_token_index, config.pad_token_id, forbidden_hashes()
    made = batches(tasks, args.workers, setup)
    held_out = [next(made) for _ in held_out]
    recent: list[mx.array] = []
    started = time.monotonic() - log["seconds"]
    with tqdm(initial=done, total=steps, unit="step", mininterval=2) as progress:
        for number, batch in enumerate(made, start=done + 1):
            recent.append(step([mx.array(part) for part in batch]))
            progress.update()
            is_last = number == steps
            if number % args.report == 0 or is_last:
                curve.append([number, *np.round(np.mean(np.array(recent), axis=0), 5).tolist()])
                recent = []
            if number % (args.report * 10) == 0 or is_last:
                weights.load(weights.split(weights.vector))
                found = np.mean([answers_right(learner.model, b) for b in held_out], axis=0)
                validation.append([number, *np.round(found, 5).tolist()])
                progress.set_postfix(loss=f"{curve[-1][1]:.4f}", right=f"{found[1]:.1%}")
                save_checkpoint(learner.model, tokenizer, args.output)
                log["seconds"] = round(time.monotonic() - started)
                save_state(args.state, weights, optimizer.state, log)
    args.state.unlink()
    return {
        "steps": steps,
        "pictures_per_step": size,
        "questions_per_picture": asked,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "parameters": sum(value.size for _, value in tree_flatten(learner.model.parameters())),
        "question_picture_pairs": steps * size * asked,
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
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--pictures", type=int, default=256, help="pictures per step")
    parser.add_argument("--questions", type=int, default=8, help="turns per picture")
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
