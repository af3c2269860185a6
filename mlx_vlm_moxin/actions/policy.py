"""Pictures and an instruction to an action in the robot's units.

Reference: ``OpenVLAForActionPrediction.predict_action`` of openvla/openvla and
moojink/openvla-oft.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_vlm.models.moxin.action_config import ActionConfig
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor

from mlx_vlm_moxin.actions.autoregressive import predict_ids
from mlx_vlm_moxin.actions.inputs import ActionInputs, Pictures, prepare
from mlx_vlm_moxin.actions.parallel import action_hidden_states
from mlx_vlm_moxin.actions.statistics import Scale
from mlx_vlm_moxin.actions.tokens import ActionTokenizer


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


def infer(model: nn.Module, inputs: ActionInputs, *, action_ids_only: bool = False) -> Prediction:
    """What ``model`` says about inputs that are prepared for it.

    Raises:
        ValueError: if it gives values that are not finite, or other ones than the statistics
            are for.
    """
    config, scale = inputs.config, inputs.scale
    tokenizer = ActionTokenizer.of(model.config)
    allowed = tokenizer.ids if action_ids_only else None
    pixel_values = mx.array(inputs.pixel_values)
    if config.decoding != "parallel":
        ids = predict_ids(model, inputs.prompts, pixel_values, scale.dimensions, allowed)
        return _prediction(np.array(ids), None, tokenizer, scale, inputs.is_batch)
    states = None if inputs.states is None else mx.array(inputs.states)
    shape = (len(inputs.prompts), config.chunk_size, scale.dimensions)
    count = config.chunk_size * scale.dimensions
    h = action_hidden_states(model, inputs.prompts, pixel_values, states, count, config.causal)
    if config.head is not None:
        _check_head(config, scale, inputs.data_set)
        values = np.array(model.action_head(h).astype(mx.float32))
        return _prediction(None, values, tokenizer, scale, inputs.is_batch)
    logits = model.language_model.lm_head(h)
    if allowed is not None:
        ids = mx.argmax(logits[..., allowed.start : allowed.stop], axis=-1) + allowed.start
    else:
        ids = mx.argmax(logits, axis=-1)
    return _prediction(np.array(ids).reshape(shape), None, tokenizer, scale, inputs.is_batch)


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
    inputs = prepare(
        model,
        processor,
        image,
        instruction,
        unnorm_key,
        center_crop,
        state=state,
        leave_state_out=leave_state_out,
        discrete=discrete,
    )
    return infer(model, inputs, action_ids_only=action_ids_only)


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
