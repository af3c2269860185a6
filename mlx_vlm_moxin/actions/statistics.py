"""The statistics of training data that actions and states are scaled with.

A checkpoint has them for one data set or several, in config.json as ``norm_stats`` or next to it
as dataset_statistics.json: ``{name: {"action": {"q01": [...], "q99": [...], "min": ..., "max": ...,
"mask": [...]}, "proprio": {...}}}``. Reference: ``OpenVLAForActionPrediction`` of
openvla/openvla, ``normalize_proprio`` and ``_unnormalize_actions`` of moojink/openvla-oft.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Statistics that are mapped to -1 and 1: the 1st and 99th percentiles, or the extremes.
BOUNDS = {"bounds_q99": ("q01", "q99"), "bounds": ("min", "max")}
# OpenVLA-OFT adds it to every range.
EPSILON = 1e-8
# Data sets of LIBERO are named with and without their idle steps.
_NO_NOOPS = "_no_noops"
_MAX_SHOWN = 12
_shorten = reprlib.Repr()
_shorten.maxstring = 100


@dataclass(frozen=True)
class Scale:
    """Per dimension, the values that are -1 and 1 in the model, and whether it is scaled at all.

    Attributes:
        low, high: ``[dimensions]`` float64.
        mask: ``[dimensions]`` bool; false where the model's value is not scaled (a gripper).
        epsilon: added to each range.
    """

    low: np.ndarray
    high: np.ndarray
    mask: np.ndarray
    epsilon: float = 0.0

    @property
    def dimensions(self) -> int:
        """Number of values of an action or state."""
        return len(self.low)

    def unnormalize(self, values: np.ndarray) -> np.ndarray:
        """The model's ``values`` ``[..., dimensions]`` in the data set's units, float64."""
        scaled = 0.5 * (values + 1) * (self.high - self.low + self.epsilon) + self.low
        return np.where(self.mask, scaled, values)

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """``values`` ``[..., dimensions]`` scaled for the model and clipped to [-1, 1]."""
        values = np.asarray(values, np.float64)
        # A dimension that never changes has no range and becomes the lower end.
        range_ = self.high - self.low + self.epsilon
        range_ = np.where(range_ == 0, 1.0, range_)
        scaled = 2 * (values - self.low) / range_ - 1
        return np.clip(np.where(self.mask, scaled, values), -1.0, 1.0)


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_SHOWN])
    return f"{shown} and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else shown


def choose_data_set(statistics: Mapping[str, Any] | None, key: str | None) -> str:
    """The name of the data set whose statistics are used.

    Args:
        statistics: by data set.
        key: its name, or for LIBERO the name without ``_no_noops``; None if there is only one.

    Raises:
        ValueError: listing the names, if ``key`` is none of them or is needed.
    """
    if not statistics:
        raise ValueError(
            "The checkpoint has no statistics to scale actions with: neither norm_stats in "
            "config.json nor a dataset_statistics.json; copy the latter from the training run"
        )
    names = sorted(statistics)
    if key is None and len(names) == 1:
        return names[0]
    if key is None:
        raise ValueError(
            f"The model was trained on {len(names)} data sets; choose whose statistics scale the "
            f"action (unnorm_key): {_shown(names)}"
        )
    if isinstance(key, str):
        for name in (key, key + _NO_NOOPS):
            if name in statistics:
                return name
    raise ValueError(
        f"unnorm_key {_shorten.repr(key)} is none of the model's data sets: {_shown(names)}"
    )


def scale_of(
    statistics: Mapping[str, Any],
    data_set: str,
    part: str = "action",
    normalization: str = "bounds_q99",
    epsilon: float = 0.0,
) -> Scale:
    """The scale of ``part`` of a data set.

    Args:
        part: ``"action"`` or ``"proprio"``.
        normalization: one of ``BOUNDS``.

    Raises:
        ValueError: naming what is missing or malformed.
    """
    where = f"the statistics of {data_set!r}, {part}"
    known = statistics.get(data_set)
    values = known.get(part) if isinstance(known, Mapping) else None
    if not isinstance(values, Mapping) or not values:
        raise ValueError(
            f"The statistics of {data_set!r} have no {part}; give the dataset_statistics.json of "
            "the training run"
        )
    low_name, high_name = BOUNDS[normalization]
    try:
        low, high = (np.array(values[name], np.float64) for name in (low_name, high_name))
        mask = np.array(values.get("mask", np.ones(low.shape, bool)), bool)
    except KeyError as error:
        raise ValueError(f"{where}: {error} is missing, which {normalization} needs") from error
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: the values are no lists of numbers") from error
    if low.ndim != 1 or not low.size or not low.shape == high.shape == mask.shape:
        raise ValueError(
            f"{where}: {low_name}, {high_name} and mask have shapes {low.shape}, {high.shape} and "
            f"{mask.shape}, expected the same number of values, at least one, in each"
        )
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"{where}: {low_name} or {high_name} has values that are not finite")
    return Scale(low, high, mask, epsilon)
