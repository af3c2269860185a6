"""Pictures and an instruction to an action in the robot's units.

Reference: ``OpenVLAForActionPrediction.predict_action`` of openvla/openvla and
moojink/openvla-oft.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_vlm.models.moxin.action_config import ActionConfig
from mlx_vlm.models.moxin.picture import PictureSource, read_picture
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from PIL import Image

from mlx_vlm_moxin.actions.autoregressive import predict_ids
from mlx_vlm_moxin.actions.parallel import action_hidden_states
from mlx_vlm_moxin.actions.pictures import POLICY_SIZE, center_crop, resize_for_policy
from mlx_vlm_moxin.actions.prompt import prompt_ids
from mlx_vlm_moxin.actions.statistics import EPSILON, Scale, choose_data_set, scale_of
from mlx_vlm_moxin.actions.tokens import ActionTokenizer
from mlx_vlm_moxin.checkpoints.sources.action_heads import part_files

Pictures = PictureSource | Sequence[PictureSource]


@dataclass(frozen=True)
class Prediction:
    """What a model says, for one robot or a batch of ``B``.

    The shapes are ``[action_dim]``, with ``[B, chunk_size]`` before it as far as the model gives
    chunks and a batch was given.

    Attributes:
        action: in the robot's units, float64.
        normalized: as the model has them, between -1 and 1.
        token_ids: int64; None if a regression head gave the action.
    """

    action: np.ndarray
    normalized: np.ndarray
    token_ids: np.ndarray | None


def action_config(model: nn.Module) -> ActionConfig:
    """How ``model`` gives actions.

    Raises:
        ValueError: if it gives none, or if stock mlx-vlm has loaded it without its head.
    """
    config = getattr(model.config, "action_config", None)
    if config is None:
        raise ValueError(
            f"This model gives no actions: its config.json (model_type "
            f"{model.config.model_type!r}) has neither norm_stats nor action_config. Action models "
            "are OpenVLA, OpenVLA-OFT, Moxin-VLA and models trained on action data"
        )
    path = model.config.model_path
    if config.decoding == "autoregressive" and path is not None and part_files(Path(path)):
        raise ValueError(
            f"{path} is an OpenVLA-OFT checkpoint, whose parts in .pt files stock mlx-vlm does not "
            "load: convert it, or load it with this package (load(..., actions='libero'), "
            "python -m mlx_vlm_moxin act or server)"
        )
    return config


def predict(
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
    action_ids_only: bool = False,
) -> Prediction:
    """``predict_action`` with the ids and the normalised values beside the action.

    Args:
        leave_state_out: run a model that reads the robot's state without it.
        discrete: read tokens from a model that has a regression head.

    The other arguments and the errors are those of ``predict_action``.
    """
    config = action_config(model)
    if discrete and config.head is not None:
        config = replace(config, head=None, head_hidden_size=None)
    if leave_state_out:
        config = replace(config, proprio_dim=None)
    is_batch = not isinstance(instruction, str)
    instructions = list(instruction) if is_batch else [instruction]
    if not instructions or not all(isinstance(text, str) for text in instructions):
        raise ValueError("instruction must be a text, or a list of texts that is not empty")
    rows = list(image) if is_batch else [image]
    if len(rows) != len(instructions):
        raise ValueError(f"There are {len(rows)} pictures for {len(instructions)} instructions")
    if center_crop is not None:
        config = replace(config, center_crop=center_crop)
    data_set = choose_data_set(model.config.norm_stats, unnorm_key)
    # OpenVLA-OFT adds EPSILON to the ranges, OpenVLA does not.
    is_parallel = config.decoding == "parallel"
    scaling = {"normalization": config.normalization, "epsilon": EPSILON if is_parallel else 0.0}
    scale = scale_of(model.config.norm_stats, data_set, "action", **scaling)
    tokenizer = ActionTokenizer.of(model.config)
    prompts = [prompt_ids(processor.tokenizer, model.config, text) for text in instructions]
    pixel_values = mx.array(
        processor.image_processor([picture for row in rows for picture in _pictures(row, config)])
    )
    states = _states(model, config, state, is_batch, len(rows), data_set, scaling)
    allowed = tokenizer.ids if action_ids_only else None
    if not is_parallel:
        ids = predict_ids(model, prompts, pixel_values, scale.dimensions, allowed)
        return _prediction(np.array(ids), None, tokenizer, scale, is_batch)
    shape = (len(rows), config.chunk_size, scale.dimensions)
    count = config.chunk_size * scale.dimensions
    h = action_hidden_states(model, prompts, pixel_values, states, count, config.causal)
    if config.head is not None:
        _check_head(config, scale, data_set)
        values = np.array(model.action_head(h).astype(mx.float32))
        return _prediction(None, values, tokenizer, scale, is_batch)
    logits = model.language_model.lm_head(h)
    if allowed is not None:
        ids = mx.argmax(logits[..., allowed.start : allowed.stop], axis=-1) + allowed.start
    else:
        ids = mx.argmax(logits, axis=-1)
    return _prediction(np.array(ids).reshape(shape), None, tokenizer, scale, is_batch)


def predict_action(
    model: nn.Module,
    processor: MoxinProcessor,
    image: Pictures | Sequence[Pictures],
    instruction: str | Sequence[str],
    unnorm_key: str | None = None,
    center_crop: bool | None = None,
    *,
    state: np.ndarray | Sequence[float] | Sequence[Sequence[float]] | None = None,
    action_ids_only: bool = False,
) -> np.ndarray:
    """The action that ``model`` takes on ``instruction`` before what the cameras show.

    Args:
        model, processor: an OpenVLA, OpenVLA-OFT or Moxin-VLA model, as ``load`` gives them.
        image: the camera's picture (see ``picture.read_picture``), or
            the pictures of several cameras, the main one first; for a list of instructions, one
            of these for each.
        instruction: what the robot is to do, or several such texts for one pass.
        unnorm_key: the data set whose statistics scale the action; None if there is but one.
        center_crop: crop pictures to 0.9 of their area first, as the evaluation of models does
            that were trained with `image_aug`; None for what the checkpoint says.
        state: the robot's state in its units, ``[proprio_dim]`` or ``[B, proprio_dim]``, if the
            model reads it.
        action_ids_only: let only the 256 ids that stand for actions compete. The published code
            takes the likeliest of all ids and counts others as the nearest bin.

    Returns:
        float64 ``[action_dim]``; ``[chunk_size, action_dim]`` from models that give chunks; with
        the batch first if a list of instructions was given.

    Raises:
        ValueError: one line that says what cannot be used, and what can.
    """
    return predict(
        model,
        processor,
        image,
        instruction,
        unnorm_key,
        center_crop,
        state=state,
        action_ids_only=action_ids_only,
    ).action


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
    model: nn.Module,
    config: ActionConfig,
    state: Any,
    is_batch: bool,
    rows: int,
    data_set: str,
    scaling: dict[str, Any],
) -> mx.array | None:
    """Normalised states ``[B, proprio_dim]``; None if the model reads none."""
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
    except (TypeError, ValueError) as error:
        raise ValueError(f"state must be numbers ({error})") from error
    values = values if is_batch else values[None]
    if values.shape != (rows, config.proprio_dim):
        expected = [rows, config.proprio_dim] if is_batch else [config.proprio_dim]
        shape = list(values.shape if is_batch else values.shape[1:])
        raise ValueError(f"state must have shape {expected}, got {shape}")
    if not np.isfinite(values).all():
        raise ValueError("state has values that are not finite")
    scale = scale_of(model.config.norm_stats, data_set, "proprio", **scaling)
    if scale.dimensions != config.proprio_dim:
        raise ValueError(
            f"The statistics of {data_set!r} are for states of {scale.dimensions} values, the "
            f"model reads {config.proprio_dim}"
        )
    return mx.array(scale.normalize(values).astype(np.float32))


def _check_head(config: ActionConfig, scale: Scale, data_set: str) -> None:
    if scale.dimensions != config.action_dim:
        raise ValueError(
            f"The statistics of {data_set!r} are for actions of {scale.dimensions} values, the "
            f"model's head gives {config.action_dim}"
        )


def _prediction(
    ids: np.ndarray | None,
    values: np.ndarray | None,
    tokenizer: ActionTokenizer,
    scale: Scale,
    is_batch: bool,
) -> Prediction:
    normalized = tokenizer.decode(ids) if values is None else values
    if not np.isfinite(normalized).all():
        raise ValueError("The model gave values that are not finite; its weights are damaged")
    action = scale.unnormalize(normalized)
    ids = None if ids is None else ids.astype(np.int64)
    if is_batch:
        return Prediction(action, normalized, ids)
    return Prediction(action[0], normalized[0], None if ids is None else ids[0])
