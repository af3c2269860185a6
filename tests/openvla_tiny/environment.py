"""The table as a gymnasium environment: ``TableEnv(split="test", kind="into")``."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from .drawing import SIZE, draw
from .layouts import make_table
from .table import ACTION_DIM, STEP, STEP_Z, step
from .tasks import KINDS, MAX_STEPS, make_task


class TableEnv(gym.Env):
    """A picture for an observation, OpenVLA's seven numbers for an action, 1 for success.

    The instruction is in ``info["instruction"]`` after ``reset``. Each seed is one table and one
    task, always the same.

    Args:
        split: ``train``, ``validation`` or ``test`` (``openvla_tiny.layouts``).
        kind: one of ``tasks.KINDS``; None for one that depends on the seed.
        wording: which of the kind's wordings; None for one that depends on the seed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, split: str = "test", kind: str | None = None, wording: int | None = None):
        if kind not in (None, *KINDS):
            raise ValueError(f"Unknown kind of task {kind!r}; known: {', '.join(KINDS)}")
        self.render_mode = "rgb_array"
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        limits = np.array([STEP, STEP, STEP_Z, 1, 1, 1, 1], np.float64)
        low = np.concatenate([-limits[:6], [0.0]])
        self.action_space = spaces.Box(low, limits, (ACTION_DIM,), np.float64)
        self._split, self._kind, self._wording = split, kind, wording

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first picture of the table with number ``seed`` (random if None)."""
        super().reset(seed=seed)
        index = int(self.np_random.integers(2**31)) if seed is None else seed
        self.table, rng = make_table(self._split, index)
        kind = self._kind or KINDS[index % len(KINDS)]
        self.task = make_task(kind, self.table, self._split, rng, self._wording)
        self._steps = 0
        return self._observe(), {"instruction": self.task.instruction, "kind": kind}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Picture, reward (1 once the task is done), terminated, truncated, info."""
        self.table = step(self.table, np.asarray(action, np.float64))
        self._steps += 1
        is_done = self.task.is_done(self.table)
        return self._observe(), float(is_done), is_done, self._steps >= MAX_STEPS, {}

    def render(self) -> np.ndarray:
        """The picture ``[224, 224, 3]`` uint8."""
        return self._observe()

    def _observe(self) -> np.ndarray:
        return np.asarray(draw(self.table))
