"""Pictures and an instruction to an action in the robot's units.

Reference: ``OpenVLAForActionPrediction.predict_action`` of openvla/openvla and
moojink/openvla-oft.
"""

from collections.abc import Sequence
from contextlib import ExitStack
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
    """A model's prediction for one robot or a batch of ``B``.

    The shapes are ``[action_dim]``, preceded by ``chunk_size`` if the model predicts chunks, and
    that by ``B`` for a batch.

    Attributes:
        action: in the robot's units, float64.
        normalized: the model's values, between -1 and 1.
        token_ids: int64; None if a regression head gave the action.
    """

    action: np.ndarray
    normalized: np.ndarray
    token_ids: np.ndarray | None


def infer(model: nn.Module, inputs: ActionInputs, *, action_ids_only: bool = False) -> Prediction:
    """The prediction of ``model`` for prepared inputs.

    Raises:
        ValueError: if the values are not finite, or their number differs from the statistics'.
    """
    config, scale = inputs.config, inputs.scale
    tokenizer = ActionTokenizer.of(model.config)
    allowed = tokenizer.ids if action_ids_only else None
    pixel_values = inputs.pixel_values
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
    """``predict_action`` that also returns the ids and the normalised values.

    Args:
        leave_state_out: run a model that uses the robot's state without it.
        discrete: read tokens from a model that has a regression head.

    The other arguments and the errors are those of ``predict_action``.
    """
    with ExitStack() as stack:
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
            until=stack,
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
    """The action of ``model`` for camera pictures and an instruction.

    Args:
        model, processor: an OpenVLA, OpenVLA-OFT or Moxin-VLA model, as ``load`` gives them.
        image: the camera's picture (see ``picture.read_picture``), or
            the pictures of several cameras, the main one first; for a list of instructions, one
            of these for each.
        instruction: the robot's task, or several for one pass.
        unnorm_key: the data set whose statistics scale the action; None if there is only one.
        center_crop: first crop pictures to 0.9 of their area, as in the evaluation of models
            trained with `image_aug`; None for the checkpoint's setting.
        state: the robot's state in its units, ``[proprio_dim]`` or ``[B, proprio_dim]``, if the
            model reads it.
        action_ids_only: choose among the 256 action ids only. The published code chooses the
            likeliest of all ids and counts others as the nearest bin.

    Returns:
        float64 ``[action_dim]``; ``[chunk_size, action_dim]`` from models that predict chunks; with
        the batch as first axis if a list of instructions was given.

    Raises:
        ValueError: one line that names what cannot be used, and the alternatives.
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
