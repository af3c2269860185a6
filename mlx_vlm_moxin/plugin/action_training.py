"""``mlx_vlm.train`` on action data."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_vlm.models.moxin import Model

from mlx_vlm_moxin.actions.training import (
    ActionDataset,
    is_action_data,
    write_trained_statistics,
)


def make_task(original: Callable[..., Any]) -> Callable[..., Any]:
    """``mlx_vlm.trainer.vlm.sft.runtime.make_task`` that also supports action data, for Moxin.

    The statistics of the data are written next to the adapter.
    """

    @functools.wraps(original)
    def make(model: nn.Module, args: Any, processing_class: Any = None, *more: Any, **kwargs: Any):
        from mlx_vlm.trainer.datasets.loading import CacheDataset

        task = original(model, args, processing_class, *more, **kwargs)
        if not isinstance(model, Model) or processing_class is None:
            return task

        def prepare(rows: Any) -> Any:
            if not is_action_data(rows):
                return task.prepare_dataset(rows)
            if not args.train_on_completions:
                raise ValueError(
                    "Action data needs --train-on-completions: the loss is on action tokens alone"
                )
            dataset = ActionDataset(rows, model.config, processing_class)
            return CacheDataset(dataset, max_size=args.cache_size, process=False)

        def save(model: nn.Module, adapter_file: str | Path, *arguments: Any, **options: Any):
            task.save_weights(model, adapter_file, *arguments, **options)
            write_trained_statistics(model.config, Path(adapter_file).parent)

        return replace(task, prepare_dataset=prepare, save_weights=save)

    return make
