"""The checkpoint's action statistics, and actions as its tokens."""

from functools import lru_cache

import numpy as np

from mlx_vlm_moxin.actions.statistics import scale_of
from mlx_vlm_moxin.actions.tokens import ActionTokenizer

from .table import STEP, STEP_Z

# Name of the data set, the key of a checkpoint's statistics.
DATASET = "tabletop"
# Turns and gripper are not normalised: turns are not used, and the gripper is 0 or 1 already.
MASK = [True, True, True, False, False, False, False]
LOWER = [-STEP, -STEP, -STEP_Z, 0.0, 0.0, 0.0, 0.0]
UPPER = [STEP, STEP, STEP_Z, 0.0, 0.0, 0.0, 1.0]


def statistics() -> dict:
    """``norm_stats`` of config.json: the ranges that the expert's actions have."""
    action = {"q01": LOWER, "q99": UPPER, "min": LOWER, "max": UPPER, "mask": MASK}
    return {DATASET: {"action": action, "num_transitions": 0, "num_trajectories": 0}}


class ActionEncoder:
    """Actions to token ids.

    Args:
        vocab_size: number of tokens before ``<PAD>``; the last 256 of them mean actions.
    """

    def __init__(self, vocab_size: int):
        self._tokens = ActionTokenizer(vocab_size)
        self._scale = scale_of(statistics(), DATASET)
        # The expert has few different actions.
        self._ids = lru_cache(maxsize=1 << 14)(self._encode)

    def _encode(self, *action: float) -> list[int]:
        return self._tokens.encode(self._scale.normalize(np.array(action))).tolist()

    def __call__(self, action: np.ndarray) -> list[int]:
        """The seven ids of an action ``[7]``."""
        return self._ids(*action.tolist())
