"""Action data for training: rows with a picture, an instruction and an action.

The training text is OpenVLA's, as ids: the prompt, the ids of the action's bins, ``</s>``. Only
the action's ids count in the loss. Actions are scaled with the statistics of the data, which are
saved with the trained weights.

Reference: ``RLDSBatchTransform`` in prismatic/vla/datasets/datasets.py and
``get_dataset_statistics`` in prismatic/vla/datasets/rlds/utils/data_utils.py of openvla/openvla.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.models.moxin.config import STATISTICS_FILE, ModelConfig
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor

from mlx_vlm_moxin.actions.prompt import prompt_ids
from mlx_vlm_moxin.actions.statistics import choose_data_set, scale_of
from mlx_vlm_moxin.actions.tokens import ActionTokenizer

# Columns of a row; the last one may be missing.
INSTRUCTION = "instruction"
ACTION = "action"
DATA_SET = "data_set"
_DEFAULT_NAME = "action_data"


def is_action_data(rows: Any) -> bool:
    """Whether ``rows`` are action data instead of conversations."""
    first = rows[0] if len(rows) else None
    return isinstance(first, Mapping) and ACTION in first and "messages" not in first


def compute_statistics(actions: np.ndarray) -> dict[str, Any]:
    """An entry of dataset_statistics.json for ``actions`` ``[N, dimensions]``."""
    low, high = np.quantile(actions, (0.01, 0.99), axis=0)
    values = {
        "mean": actions.mean(axis=0),
        "std": actions.std(axis=0),
        "max": actions.max(axis=0),
        "min": actions.min(axis=0),
        "q01": low,
        "q99": high,
    }
    action = {name: value.tolist() for name, value in values.items()}
    return {"action": action, "num_transitions": len(actions)}


class ActionDataset:
    """Rows of action data as a data set for mlx-vlm's training.

    Args:
        rows: mappings with ``image``, ``instruction`` and ``action``; with ``data_set`` if there is
            more than one. If they have a ``base_path``, it is the folder of the pictures, its name
            is the data set's, and a dataset_statistics.json in it is used.
        config: the model's, whose statistics become those of the data.
        processor: the model's.

    Raises:
        ValueError: naming the row that cannot be used.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], config: ModelConfig, processor: MoxinProcessor
    ):
        config.set_default_actions()
        if config.action_config.decoding != "autoregressive":
            raise ValueError(
                "Models that give chunks (OpenVLA-OFT) are not trained here; start from OpenVLA "
                "or from a model that has learned no actions"
            )
        self._rows, self._config, self._processor = rows, config, processor
        self._tokenizer = ActionTokenizer.of(config)
        self._folder = folder = getattr(rows, "base_path", None)
        self._name = folder.name if folder is not None and folder.name else _DEFAULT_NAME
        actions = self._actions(rows)
        # Rows for validation are scaled like those for training, which are read first.
        if not getattr(config, "trained_statistics", None):
            given = folder / STATISTICS_FILE if folder is not None else None
            if given is not None and given.is_file():
                config.read_statistics(folder)
            else:
                config.norm_stats = {k: compute_statistics(v) for k, v in actions.items()}
            config.trained_statistics = config.norm_stats
        self._scales = {}
        for name, values in actions.items():
            scale = scale_of(config.norm_stats, choose_data_set(config.norm_stats, name))
            if scale.dimensions != values.shape[1]:
                raise ValueError(
                    f"Actions of {name!r} have {values.shape[1]} values, their statistics "
                    f"{scale.dimensions}"
                )
            self._scales[name] = scale

    def _actions(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """All actions ``[N, dimensions]`` by data set."""
        actions: dict[str, list[np.ndarray]] = {}
        for number, row in enumerate(rows, start=1):
            problem = None
            try:
                values = np.array(row.get(ACTION), np.float64)
            except (OverflowError, TypeError, ValueError):
                values = np.zeros(0)
            known = actions.setdefault(str(row.get(DATA_SET, self._name)), [])
            if row.get("image") is None:
                problem = "image is missing"
            elif not isinstance(row.get(INSTRUCTION), str):
                problem = "instruction must be a text"
            elif values.ndim != 1 or not values.size or not np.isfinite(values).all():
                problem = "action must be a list of numbers"
            elif known and known[0].shape != values.shape:
                problem = f"action has {values.size} values, the rows before {known[0].size}"
            if problem is not None:
                raise ValueError(f"Row {number} of the action data: {problem}")
            known.append(values)
        return {name: np.stack(values) for name, values in actions.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def media_signature(self, index: int) -> tuple[str, ...]:
        """The shapes by which mlx-vlm forms batches."""
        return ("image",)

    def _picture(self, source: Any) -> Any:
        is_relative = isinstance(source, str) and ":" not in source[:12]
        if is_relative and self._folder is not None:
            return self._folder / source
        return source

    def __getitem__(self, index: int) -> dict[str, mx.array]:
        """A row as arrays.

        Returns:
            ``input_ids``, ``attention_mask`` and ``completion_mask`` ``[T]`` (1 for the ids of
            the action) and ``pixel_values`` ``[1, C, S, S]``.

        Raises:
            ValueError: if its picture cannot be read.
        """
        row = self._rows[index]
        inputs = self._processor("", [self._picture(row["image"])])
        scale = self._scales[str(row.get(DATA_SET, self._name))]
        action = self._tokenizer.encode(scale.normalize(np.array(row[ACTION], np.float64)))
        prompt = prompt_ids(self._processor.tokenizer, self._config, row[INSTRUCTION])
        picture = inputs["input_ids"][0].tolist()
        ids = [*picture, *prompt, *action.tolist(), self._config.eos_token_id]
        is_action = np.zeros(len(ids), np.int32)
        is_action[len(picture) + len(prompt) : -1] = 1
        return {
            "input_ids": mx.array(ids),
            "attention_mask": mx.ones(len(ids), mx.int32),
            "completion_mask": mx.array(is_action),
            "pixel_values": inputs["pixel_values"],
        }


def write_trained_statistics(config: ModelConfig, directory: Path) -> None:
    """Write dataset_statistics.json if a model with ``config`` was trained on action data."""
    statistics = getattr(config, "trained_statistics", None)
    if statistics:
        text = json.dumps(statistics, indent=2) + "\n"
        (directory / STATISTICS_FILE).write_text(text, encoding="utf-8")
