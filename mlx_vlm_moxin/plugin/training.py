"""Failing training ends with one line, and usable weights are kept.

mlx-vlm continues after a loss has become NaN, overwrites saved weights with NaN and ends with
status 0. With Moxin in float16 this happens in the second step, because Adam's ``eps`` is 0 there.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_vlm.models.moxin import Model
from mlx_vlm.trainer.common.callbacks import TrainingCallback
from mlx_vlm.trainer.common.utils import save_trainable_weights

# Weights are kept in memory up to this share of the model's size, such as those of adapters.
KEPT_SHARE = 0.1
Weights = list[tuple[str, mx.array]]


class TrainingError(ValueError):
    """Training was ended; the message says why, and which weights were kept."""


def check_precision(model: nn.Module, optimizer: Any) -> None:
    """Refuse an optimizer that would divide by zero in the dtype of the trained weights.

    Raises:
        TrainingError: naming the dtype and the conversion that helps.
    """
    eps = getattr(optimizer, "eps", None)
    if eps is None:
        return
    for _, value in tree_flatten(model.trainable_parameters()):
        if eps > 0 and mx.array(eps).astype(value.dtype).item() == 0:
            dtype = str(value.dtype).removeprefix("mlx.core.")
            raise TrainingError(
                f"Training {dtype} weights with {type(optimizer).__name__} gives NaN, since its "
                f"eps of {eps:g} is 0 in {dtype}: convert the checkpoint with --dtype bfloat16 "
                "(python -m mlx_vlm_moxin convert --dtype bfloat16) and train that"
            )


def _nbytes(weights: Weights) -> int:
    return sum(value.nbytes for _, value in weights)


class Guard(TrainingCallback):
    """Ends training when a loss is not finite, with the last finite weights in the file.

    Weights are known to be good once a finite loss was computed with them, so those of one report
    are confirmed by the loss of the next.

    Args:
        save: writes a model's trainable weights to a path.
        path: the file to write.
        wrapped: the callback to which reports are forwarded.
    """

    def __init__(
        self,
        model: nn.Module,
        save: Callable[..., None],
        path: str,
        wrapped: TrainingCallback | None = None,
    ):
        self.model, self._save, self.path, self.wrapped = model, save, path, wrapped
        self._iteration = 0
        self._saved: int | None = None
        self._latest: tuple[int, Weights] | None = None
        self._good: tuple[int, Weights] | None = None
        trainable = tree_flatten(model.trainable_parameters())
        self._keeps = _nbytes(trainable) <= KEPT_SHARE * _nbytes(tree_flatten(model.parameters()))

    def on_train_loss_report(self, train_info: dict) -> None:
        """A loss of the last steps: check it, then forward it."""
        self._check(train_info, "train_loss")
        if self._keeps:
            self._good = self._latest
            weights = tree_flatten(self.model.trainable_parameters())
            self._latest = train_info["iteration"], weights
        if self.wrapped is not None:
            self.wrapped.on_train_loss_report(train_info)

    def on_val_loss_report(self, val_info: dict) -> None:
        """A loss of the validation set: check it, then forward it."""
        self._check(val_info, "val_loss")
        if self.wrapped is not None:
            self.wrapped.on_val_loss_report(val_info)

    def save(self, model: nn.Module, path: str, iteration: int | None = None) -> None:
        """Write the weights, unless one of them is not finite.

        Raises:
            TrainingError: if one is.
        """
        for name, value in tree_flatten(model.trainable_parameters()):
            if not mx.all(mx.isfinite(value)).item():
                self._end(f"{name} is no longer finite")
        self._save(model, path, iteration=iteration)
        self._saved = iteration

    def _check(self, info: dict, name: str) -> None:
        self._iteration = info["iteration"]
        if not isfinite(info[name]):
            self._end(f"{name} is {info[name]}")

    def _end(self, reason: str) -> None:
        kept = f"nothing has been saved to {self.path}"
        if self._good is not None:
            iteration, weights = self._good
            self.model.update(tree_unflatten(weights))
            self._save(self.model, self.path)
            kept = f"{self.path} holds the weights of iteration {iteration}"
        elif self._saved is not None:
            kept = f"{self.path} holds the weights of iteration {self._saved}"
        raise TrainingError(
            f"Training ended at iteration {self._iteration}: {reason}; {kept}. "
            "Try a lower --learning-rate, or look for faulty rows in the data"
        )


def train(original: Callable[..., dict]) -> Callable[..., dict]:
    """``mlx_vlm.trainer.common.engine.train`` that ends when a loss is not finite."""

    @functools.wraps(original)
    def run(
        model: nn.Module,
        optimizer: Any,
        train_dataset: Any,
        val_dataset: Any,
        args: Any,
        task: Any,
        training_callback: TrainingCallback | None = None,
        *rest: Any,
        **kwargs: Any,
    ) -> dict:
        if isinstance(model, Model):
            check_precision(model, optimizer)
            save = task.save_weights or save_trainable_weights
            guard = Guard(model, save, args.adapter_file, training_callback)
            task, training_callback = replace(task, save_weights=guard.save), guard
        return original(
            model,
            optimizer,
            train_dataset,
            val_dataset,
            args,
            task,
            training_callback,
            *rest,
            **kwargs,
        )

    return run
