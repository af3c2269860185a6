"""Prepares pictures, instructions and states for an action model, without running the model.

The model does not compute here, so a server prepares requests in separate threads while it is busy
with others.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_vlm.models.moxin.action_config import ActionConfig
from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.picture import PictureSource, read_picture
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from mlx_vlm.models.moxin.tokenization_moxin import longest_token
from PIL import Image

from mlx_vlm_moxin.actions.pictures import POLICY_SIZE, center_crop, resize_for_policy
from mlx_vlm_moxin.actions.prompt import prompt_ids
from mlx_vlm_moxin.actions.statistics import EPSILON, Scale, choose_data_set, scale_of
from mlx_vlm_moxin.checkpoints.sources.action_heads import part_files

Pictures = PictureSource | Sequence[PictureSource]


@dataclass(frozen=True)
class ActionInputs:
    """A model's inputs for ``B`` robots.

    Attributes:
        config: the model's, with the caller's changes.
        prompts: ids of each prompt, without ``<s>``.
        pixel_values: float32 ``[B * num_images, channels, side, side]``; a GPU may still be
            computing them.
        states: float32 ``[B, proprio_dim]``, normalised; None if the model reads none.
        data_set: name of the statistics that scale the action.
        scale: these statistics.
        is_batch: whether the caller gave lists.
    """

    config: ActionConfig
    prompts: list[list[int]]
    pixel_values: mx.array
    states: np.ndarray | None
    data_set: str
    scale: Scale
    is_batch: bool


def action_config(model: nn.Module) -> ActionConfig:
    """The action settings of ``model``.

    Raises:
        ValueError: if it predicts none, or if stock mlx-vlm has loaded it without its head.
    """
    config = getattr(model.config, "action_config", None)
    if config is None:
        raise ValueError(
            f"This model gives no actions: its config.json (model_type "
            f"{model.config.model_type!r}) has neither norm_stats nor action_config, and there is "
            "no dataset_statistics.json next to it. Action models are OpenVLA, OpenVLA-OFT, "
            "Moxin-VLA and models trained on action data"
        )
    path = model.config.model_path
    if config.decoding == "autoregressive" and path is not None and part_files(Path(path)):
        raise ValueError(
            f"{path} is an OpenVLA-OFT checkpoint, whose parts in .pt files stock mlx-vlm does not "
            "load: convert it, or load it with this package (load(..., actions='libero'), "
            "python -m mlx_vlm_moxin act or server)"
        )
    return config


def prepare(
    model: nn.Module,
    processor: MoxinProcessor,
    image: Pictures | Sequence[Pictures],
    instruction: str | Sequence[str],
    unnorm_key: str | None = None,
    center_crop: bool | None = None,
    *,
    state: np.ndarray | Sequence[float] | Sequence[Sequence[float]] | None = None,
    leave_state_out: bool = False,
    discrete: bool = False,
    tokenizer_lock: AbstractContextManager | None = None,
    until: ExitStack | None = None,
) -> ActionInputs:
    """Read pictures and texts for ``policy.infer``; only the config of ``model`` is used.

    Args:
        tokenizer_lock: held while the tokenizer is used, if other threads use it too.
        until: before the end of this context, the calling thread runs the model
            (``MoxinImageProcessor.pixels``).

    The other arguments and the errors are those of ``policy.predict``.
    """
    config = action_config(model)
    if discrete and config.head is not None:
        config = replace(config, head=None, head_hidden_size=None)
    if leave_state_out:
        config = replace(config, proprio_dim=None)
    is_batch = isinstance(instruction, (list, tuple, np.ndarray))
    instructions = list(instruction) if is_batch else [instruction]
    if not instructions or not all(isinstance(text, str) for text in instructions):
        raise ValueError("instruction must be a text, or a list of texts that is not empty")
    if is_batch and not isinstance(image, (list, tuple, np.ndarray, mx.array)):
        raise ValueError("For a list of instructions, image must be a list of their pictures")
    rows = list(image) if is_batch else [image]
    if len(rows) != len(instructions):
        raise ValueError(f"There are {len(rows)} pictures for {len(instructions)} instructions")
    if center_crop is not None:
        config = replace(config, center_crop=center_crop)
    norm_stats = model.config.norm_stats
    data_set = choose_data_set(norm_stats, unnorm_key)
    # OpenVLA-OFT adds EPSILON to the ranges, OpenVLA does not.
    epsilon = EPSILON if config.decoding == "parallel" else 0.0
    scaling = {"normalization": config.normalization, "epsilon": epsilon}
    scale = scale_of(norm_stats, data_set, "action", **scaling)
    count = config.chunk_size * scale.dimensions
    with tokenizer_lock or nullcontext():
        prompts = [_prompt(processor, model.config, config, text, count) for text in instructions]
    pictures = [picture for row in rows for picture in _pictures(row, config)]
    states = _states(norm_stats, config, state, is_batch, len(rows), data_set, scaling)
    pixel_values = processor.image_processor.pixels(pictures, until)
    return ActionInputs(config, prompts, pixel_values, states, data_set, scale, is_batch)


def _prompt(
    processor: MoxinProcessor, model: ModelConfig, config: ActionConfig, text: str, count: int
) -> list[int]:
    """Ids of the prompt for the instruction ``text``.

    Args:
        count: values of an action or a chunk.

    Raises:
        ValueError: if the model's context has no room for it. Attention over a text of any length
            would need any amount of memory.
    """
    limit = model.text_config.max_position_embeddings
    pictures = config.num_images * model.vision_config.num_patches
    # Besides the prompt: <s>, the pictures, the state, the action, </s>.
    room = limit - 2 - pictures - (config.proprio_dim is not None) - count
    # Counting tokens is slow for a text of megabytes.
    if len(text) > limit * longest_token(processor.tokenizer):
        size = f"{len(text)} characters"
    else:
        prompt = prompt_ids(processor.tokenizer, model, text)
        if len(prompt) <= room:
            return prompt
        size = f"{len(prompt)} tokens"
    raise ValueError(
        f"The prompt with this instruction has {size}; next to pictures and action, the model's "
        f"context of {limit} tokens has room for {max(room, 0)}"
    )


def _pictures(row: Pictures, config: ActionConfig) -> list[Image.Image]:
    """The prepared pictures of one robot's cameras."""
    sources = list(row) if isinstance(row, (list, tuple)) else [row]
    if len(sources) != config.num_images:
        raise ValueError(
            f"The model sees {config.num_images} picture"
            f"{'s' if config.num_images > 1 else ''} at a time, {len(sources)} given"
        )
    images = [read_picture(source) for source in sources]
    if config.policy_resize:
        side = (POLICY_SIZE, POLICY_SIZE)
        images = [image if image.size == side else resize_for_policy(image) for image in images]
    return [center_crop(image) for image in images] if config.center_crop else images


def _states(
    norm_stats: dict[str, Any],
    config: ActionConfig,
    state: Any,
    is_batch: bool,
    rows: int,
    data_set: str,
    scaling: dict[str, Any],
) -> np.ndarray | None:
    """Normalised states, float32 ``[B, proprio_dim]``; None if the model reads none."""
    if config.proprio_dim is None:
        if state is not None:
            raise ValueError("The model does not read the robot's state; leave state out")
        return None
    if state is None:
        raise ValueError(
            f"The model reads the robot's state: give state with {config.proprio_dim} values"
        )
    try:
        values = np.asarray(state, np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"state must be numbers ({error})") from error
    values = values if is_batch else values[None]
    if values.shape != (rows, config.proprio_dim):
        expected = [rows, config.proprio_dim] if is_batch else [config.proprio_dim]
        shape = list(values.shape if is_batch else values.shape[1:])
        raise ValueError(f"state must have shape {expected}, got {shape}")
    if not np.isfinite(values).all():
        raise ValueError("state has values that are not finite")
    scale = scale_of(norm_stats, data_set, "proprio", **scaling)
    if scale.dimensions != config.proprio_dim:
        raise ValueError(
            f"The statistics of {data_set!r} are for states of {scale.dimensions} values, the "
            f"model reads {config.proprio_dim}"
        )
    return scale.normalize(values).astype(np.float32)
