"""Loads Moxin like ``mlx_vlm.load``, also from OminiX exports, and quantises while loading."""

import inspect
import logging
from pathlib import Path
from types import NoneType
from typing import Any

import mlx.nn as nn
from mlx_vlm import utils
from mlx_vlm.models.moxin import Model
from mlx_vlm.models.moxin.config import MODEL_TYPES
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor

from mlx_vlm_moxin.checkpoints.action_options import NO_OPTIONS, ActionOptions
from mlx_vlm_moxin.checkpoints.messages import one_line
from mlx_vlm_moxin.checkpoints.quantize_options import (
    OptionNames,
    QuantizeOptions,
    check_settings,
)
from mlx_vlm_moxin.checkpoints.skeleton import build_skeleton
from mlx_vlm_moxin.checkpoints.sources import Source, open_source
from mlx_vlm_moxin.checkpoints.sources.action_heads import FILES as ACTION_FILES
from mlx_vlm_moxin.checkpoints.sources.directory import SMALL_FILES, read_json
from mlx_vlm_moxin.checkpoints.sources.files import fetch
from mlx_vlm_moxin.checkpoints.tensor_values import compute_tensors
from mlx_vlm_moxin.library.memory import warn_if_too_large

logger = logging.getLogger(__name__)
AS_STORED = QuantizeOptions()
LOAD_ARGUMENTS = OptionNames("quantize=", "group_size=", "mode=")
# The seam in plugin/quantize_on_load.py replaces this name in mlx_vlm.utils.
_stock_load_model = utils.load_model


def quantize_options(
    bits: int | None, group_size: int | None = None, mode: str = "affine"
) -> QuantizeOptions:
    """The options for quantising the decoder; with ``bits`` None, it is loaded as stored.

    Raises:
        ValueError: naming the value that MLX does not support, and the supported ones, or a
            setting that has no effect without ``bits``.
    """
    if bits is None:
        settings = {"group_size": group_size, "mode": None if mode == "affine" else mode}
        for name, value in settings.items():
            if value is not None:
                raise ValueError(f"{name}={value!r} has no effect without quantize=<bits>")
        return AS_STORED
    check_settings(bits, group_size, mode, LOAD_ARGUMENTS)
    return QuantizeOptions(quantize=True, q_bits=bits, q_group_size=group_size, q_mode=mode)


def model_type(directory: Path) -> str | None:
    """``model_type`` in the config.json of a checkpoint directory.

    Raises:
        FileNotFoundError, ValueError: if there is none, or it is not JSON.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the directory that holds the checkpoint")
    return read_json(path).get("model_type")


def _compute(source: Source, options: QuantizeOptions, **kwargs: Any) -> nn.Module:
    """The model that a conversion of ``source`` would give, computed one tensor at a time.

    The source of a tensor is freed before the next one is read, so memory holds little more than
    the result.
    """
    skeleton = build_skeleton(source, options)
    stored = source.quantization
    if stored is not None and skeleton.quantization != stored:
        logger.warning(
            "%s is quantised to %s bits already; it is unpacked and quantised again, which costs "
            "accuracy twice: start from an unquantised checkpoint if you have one",
            source.directory,
            stored.get("bits"),
        )
    warn_if_too_large(skeleton.nbytes, source.config)
    weights = dict(compute_tensors(source, skeleton))
    settings = {} if skeleton.quantization is None else {"quantization": skeleton.quantization}
    source.config.generation_config = source.generation_config
    utils.apply_generation_config_defaults(source.config, source.generation_config)
    # Without the plug-in's checks, which come before weights are computed.
    install = inspect.unwrap(utils.load_model_weights)
    return install(Model(source.config), settings, weights, source.directory, **kwargs)


def load_model(
    directory: Path,
    lazy: bool = False,
    options: QuantizeOptions = AS_STORED,
    actions: ActionOptions = NO_OPTIONS,
    **kwargs: Any,
) -> nn.Module:
    """``mlx_vlm.utils.load_model`` for a Moxin checkpoint, quantised as ``options`` say.

    A checkpoint that mlx-vlm can load and that is not quantised here is loaded by mlx-vlm; only
    then does ``lazy`` have an effect.

    Args:
        actions: what the files of an action model do not say.
        kwargs: mlx-vlm's other arguments.

    Raises:
        OSError, ValueError: one line that says what is wrong with the checkpoint.
    """
    source = open_source(str(directory), actions=actions)
    if source.is_loadable and not options.quantize:
        model = _stock_load_model(directory, lazy, **kwargs)
        model.config.action_config = source.config.action_config
        return model
    return _compute(source, options, **kwargs)


def _fetch(path_or_repo: str | Path, revision: str | None) -> Path:
    """Directory of a Moxin checkpoint; a Hub repository is downloaded once it is known to be one.

    Raises:
        OSError, ValueError: if it is none.
    """
    name = str(path_or_repo)
    found = model_type(fetch(name, SMALL_FILES, revision))
    if found not in MODEL_TYPES:
        raise ValueError(
            f"{name} has model_type {found!r}; `load` supports {' and '.join(MODEL_TYPES)} "
            "checkpoints. A native Prismatic run directory is converted first: "
            f"python -m mlx_vlm_moxin convert --hf-path {name} --mlx-path moxin"
        )
    return fetch(name, [*SMALL_FILES, "*.safetensors", *ACTION_FILES], revision)


def _with_adapter(model: nn.Module, path: Path) -> nn.Module:
    """``model`` with an adapter written by ``mlx_vlm.train``.

    Raises:
        ValueError: naming the adapter, if its files are missing or damaged.
    """
    try:
        return utils.apply_lora_layers(model, path)
    # mlx-vlm and MLX check neither its settings nor its weights.
    except Exception as error:
        raise ValueError(
            f"The adapter in {path} cannot be used ({one_line(error, 250)}); give the directory "
            "that mlx_vlm.train wrote, with adapter_config.json and adapters.safetensors"
        ) from error


def load(
    path_or_repo: str | Path,
    quantize: int | None = None,
    group_size: int | None = None,
    mode: str = "affine",
    adapter_path: str | Path | None = None,
    lazy: bool = False,
    revision: str | None = None,
    actions: ActionOptions | str | None = None,
) -> tuple[nn.Module, MoxinProcessor]:
    """Load Moxin and its processor, as ``mlx_vlm.load`` does, quantised on request.

    Quantising gives the weights of ``mlx_vlm.convert -q``: the decoder's attention, MLP and
    output head at ``quantize`` bits, the rest unchanged. Weights are quantised as they are
    read, one tensor at a time. The weights of a quantised checkpoint are dequantised first,
    unless it already has the requested settings.

    Args:
        path_or_repo: local directory or Hub repository: an HF-converted Prismatic
            checkpoint, a conversion of one, or an OminiX export.
        quantize: bits per weight (2, 3, 4, 5, 6 or 8); None to load the weights as stored.
        group_size: weights that share a scale (32, 64 or 128); None for the mode's
            default, which is 64 in mode ``"affine"``.
        mode: ``"affine"``, or one of MLX's float formats ``"mxfp4"`` (4 bits, group size
            32), ``"nvfp4"`` (4, 16), ``"mxfp8"`` (8, 32).
        adapter_path: LoRA or DoRA adapter made by ``mlx_vlm.train``. (Fully trained weights
            replace the decoder's, quantised or not.)
        lazy: read weights when they are first needed; no effect on weights that are quantised
            here or come from an OminiX export.
        revision: branch, tag or commit of a Hub repository.
        actions: what the files of an action model do not say: the name of a preset
            (``"libero"``, ``"aloha"``, ``"bridge"``), or single settings.

    Returns:
        The model in evaluation mode and its processor.

    Raises:
        OSError, ValueError: one line that says what is wrong.
    """
    options = quantize_options(quantize, group_size, mode)
    directory = _fetch(path_or_repo, revision)
    if isinstance(actions, str):
        actions = ActionOptions(preset=actions)
    if not isinstance(actions, (ActionOptions, NoneType)):
        raise ValueError(
            f"actions is a preset's name or ActionOptions, got {type(actions).__name__}"
        )
    model = load_model(directory, lazy, options, actions or NO_OPTIONS)
    if adapter_path is not None:
        model = _with_adapter(model, Path(adapter_path).expanduser())
        model.eval()
    return model, utils.load_processor(directory, True, eos_token_ids=model.config.eos_token_id)
