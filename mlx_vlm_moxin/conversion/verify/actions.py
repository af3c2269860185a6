"""How much accuracy a conversion cost an action model: both models' actions on the same inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_vlm_moxin.actions.policy import Prediction, predict
from mlx_vlm_moxin.actions.statistics import scale_of

INSTRUCTIONS = ("pick up the red block", "open the drawer", "put the cup on the plate")


def predict_actions(model: Any, processor: Any, pictures: Sequence[Path]) -> list[Prediction]:
    """An action model's predictions for every picture and instruction; empty for other models.

    Actions are scaled with the statistics of the first data set by name, and the robot's state is
    the middle of their range. A model with several cameras receives the pictures that follow as its
    other cameras.

    Args:
        model, processor: a loaded model.
        pictures: paths of the pictures.
    """
    config = model.config.action_config
    if config is None or not model.config.norm_stats:
        return []
    key = min(model.config.norm_stats)
    state = None
    if config.proprio_dim is not None:
        scale = scale_of(model.config.norm_stats, key, "proprio", config.normalization)
        state = (scale.low + scale.high) / 2
    predictions = []
    for index in range(len(pictures)):
        chosen = [pictures[(index + n) % len(pictures)] for n in range(config.num_images)]
        image = chosen if config.num_images > 1 else chosen[0]
        for text in INSTRUCTIONS:
            # Both models receive the same picture, so cropping it would make no difference.
            predictions.append(
                predict(model, processor, image, text, key, center_crop=False, state=state)
            )
    return predictions


@dataclass(frozen=True)
class ActionCost:
    """Two models' actions compared.

    Attributes:
        count: number of actions (or chunks of actions) that were compared.
        ids_equal: share of action token ids that are equal, 0 to 1; None with a regression head.
        mean, largest: absolute difference of each value of an action, ``[action_dim]``, in the
            data set's units.
    """

    count: int
    ids_equal: float | None
    mean: np.ndarray
    largest: np.ndarray

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a table."""
        ids = "no ids (regression head)" if self.ids_equal is None else f"{self.ids_equal:.1%}"
        return [
            ("Action ids equal", ids),
            ("Action difference, mean of each value", _numbers(self.mean)),
            ("Action difference, largest of each value", _numbers(self.largest)),
            ("Actions compared", str(self.count)),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json``."""
        return {
            "count": self.count,
            "ids_equal": self.ids_equal,
            "difference_mean": self.mean.tolist(),
            "difference_max": self.largest.tolist(),
        }


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def compare_actions(
    source: Sequence[Prediction], result: Sequence[Prediction]
) -> ActionCost | None:
    """Compare actions; None if the models give none, or actions of different shapes."""
    shapes = [[prediction.action.shape for prediction in side] for side in (source, result)]
    if not source or shapes[0] != shapes[1]:
        return None
    dimensions = source[0].action.shape[-1]
    differences = [
        np.abs(b.action - a.action).reshape(-1, dimensions) for a, b in zip(source, result)
    ]
    difference = np.concatenate(differences)
    ids_equal = None
    if source[0].token_ids is not None and result[0].token_ids is not None:
        equal = [(a.token_ids == b.token_ids).ravel() for a, b in zip(source, result)]
        ids_equal = float(np.concatenate(equal).mean())
    return ActionCost(len(source), ids_equal, difference.mean(axis=0), difference.max(axis=0))
