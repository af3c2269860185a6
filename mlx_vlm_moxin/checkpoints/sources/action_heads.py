"""OpenVLA-OFT's additional parts next to a checkpoint, and the settings of an action model.

A fine-tuned model is an OpenVLA checkpoint with ``action_head--{step}_checkpoint.pt`` and
``proprio_projector--{step}_checkpoint.pt``, which are state dicts with DDP's prefix ``module.``;
``latest`` is in the place of the step if training kept only its last checkpoint.
Chunk size, number of cameras and normalisation are not in any of its files.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_vlm.models.moxin.action_config import ActionConfig
from mlx_vlm.models.moxin.config import ModelConfig

from mlx_vlm_moxin.checkpoints.action_options import PRESETS, ActionOptions
from mlx_vlm_moxin.checkpoints.pt_file import read_pt
from mlx_vlm_moxin.checkpoints.sources.base import Source, Tensors
from mlx_vlm_moxin.checkpoints.tensors import LazyTensor

FILES = ["*_checkpoint.pt"]
_FILE = re.compile(r"(\w+)--(\d+|latest)_checkpoint\.pt")
# Parts of OpenVLA-OFT models that are not supported.
_UNSUPPORTED = {
    "vision_backbone": "towers conditioned on the instruction (FiLM)",
    "noisy_action_projector": "a diffusion head",
}
_HEAD = "action_head"
_PROPRIO = "proprio_projector"
# Settings that are derived from tensors.
_SIZES = ("action_dim", "proprio_dim")


@dataclass(frozen=True)
class ActionParts:
    """Parts next to a checkpoint, with their tensors under our names; empty if there are none."""

    head: Tensors
    proprio: Tensors

    @property
    def tensors(self) -> Tensors:
        """Tensors of both parts by their names here."""
        return {**self.head, **self.proprio}


def part_files(directory: Path) -> dict[str, Path]:
    """The files of OpenVLA-OFT's parts, by part; those of the last step if there are several."""
    found: dict[str, tuple[float, Path]] = {}
    for path in directory.glob("*_checkpoint.pt"):
        match = _FILE.fullmatch(path.name)
        if match is not None:
            step = math.inf if match[2] == "latest" else int(match[2])
            found[match[1]] = max(found.get(match[1], (-1, path)), (step, path))
    return {name: path for name, (_, path) in found.items()}


def _read_part(path: Path, name: str) -> Tensors:
    """A part's tensors, without the name prefixes ``module.`` and, in the head, ``model.``."""
    tensors = read_pt(path)
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, LazyTensor) for tensor in tensors.values()
    ):
        raise ValueError(
            f"{path} does not contain a state dict; copy it again from the training run"
        )
    names = {key: key.removeprefix("module.").removeprefix("model.") for key in tensors}
    missing = {"fc1.weight", "fc2.weight"} - {*names.values()}
    if missing:
        raise ValueError(f"{path} is no {name} of OpenVLA-OFT: it has no {sorted(missing)[0]}")
    return {f"{name}.{names[key]}": tensor for key, tensor in tensors.items()}


def read_parts(directory: Path) -> ActionParts:
    """Find the parts next to a checkpoint, without reading any tensor.

    Raises:
        ValueError: naming a part that is not supported or is damaged.
    """
    files = part_files(directory)
    for name, what in _UNSUPPORTED.items():
        if name in files:
            raise ValueError(
                f"{files[name]} gives this OpenVLA-OFT model {what}, which is not supported; "
                "supported are the L1 head, action tokens and the state's projector"
            )
    return ActionParts(
        *(_read_part(files[name], name) if name in files else {} for name in (_HEAD, _PROPRIO))
    )


def _check_sizes(settings: dict, found: dict[str, int | None], preset: str | None) -> None:
    """Compare a preset with the sizes of a checkpoint, which become those of ``settings``."""
    for name, value in found.items():
        if preset is not None and value is not None and PRESETS[preset][name] != value:
            raise ValueError(
                f"--action-preset {preset} has {name} {PRESETS[preset][name]}, this checkpoint "
                f"{value}; give another preset, or --action-chunk and --action-images"
            )
        settings[name] = value


def resolve(config: ModelConfig, options: ActionOptions, parts: ActionParts) -> ActionConfig:
    """The settings of an action model: the checkpoint's, overridden by the user's.

    Args:
        config: config of a checkpoint that predicts actions.

    Raises:
        ValueError: naming what does not fit, or what the user has to specify.
    """
    known, settings = config.action_config, options.settings()
    if known.decoding == "parallel":
        # A conversion, whose config already has these settings.
        _check_sizes(settings, {name: getattr(known, name) for name in _SIZES}, options.preset)
        if options.discrete:
            settings |= {"head": None, "head_hidden_size": None}
        return replace(known, **settings)
    if not (parts.head or parts.proprio or options.is_parallel):
        if options.num_images is not None or options.attention is not None:
            raise ValueError(
                "--action-images and --action-attention would have no effect: this model predicts "
                "one action from one picture, token by token, as OpenVLA does"
            )
        return replace(known, **settings)
    if not parts.head and not options.discrete:
        raise ValueError(
            "There is no action_head--*_checkpoint.pt next to this checkpoint: add --discrete if "
            "its chunks are action tokens, or leave --action-preset and --action-chunk out for "
            "OpenVLA"
        )
    missing = [name for name in ("chunk_size", "num_images") if name not in settings]
    if missing:
        raise ValueError(
            "The files of this OpenVLA-OFT checkpoint do not say how long its chunks are and how "
            f"many cameras it has: give --action-preset {'|'.join(PRESETS)} (in Python: "
            "load(..., actions='libero')), or --action-chunk and --action-images"
        )
    hidden_size = config.text_config.hidden_size
    found: dict[str, int | None] = dict.fromkeys(_SIZES)
    if parts.head:
        found["action_dim"] = parts.head[f"{_HEAD}.fc2.weight"].shape[0]
    if parts.proprio:
        found["proprio_dim"] = parts.proprio[f"{_PROPRIO}.fc1.weight"].shape[1]
    _check_sizes(settings, found, options.preset)
    if parts.head and not options.discrete:
        settings["head"] = "l1"
        settings["head_hidden_size"], width = parts.head[f"{_HEAD}.fc1.weight"].shape
        if width != found["action_dim"] * hidden_size:
            raise ValueError(
                f"The action head reads {width} values for {found['action_dim']} dimensions, which "
                f"does not fit the decoder's hidden size {hidden_size}"
            )
    # OpenVLA-OFT's fork of transformers changes only Llama's attention.
    causal = config.text_config.model_type != "llama"
    return replace(known, **{"causal": causal, **settings, "decoding": "parallel"})


def with_actions(source: Source, options: ActionOptions) -> Source:
    """``source`` with its additional parts and the settings from ``options``.

    Raises:
        ValueError: see ``read_parts`` and ``resolve``; or if options are given for a model that
            predicts no actions.
    """
    if source.config.action_config is None:
        if options.is_given:
            raise ValueError(
                f"{source.directory} is not an action model (its config.json has no norm_stats), "
                "so options for actions have no effect"
            )
        return source
    parts = read_parts(source.directory)
    config = source.config
    config.action_config = resolve(config, options, parts)
    config.check_appended_token()
    tensors = {**source.tensors, **parts.tensors}
    if config.action_config.head is None:
        tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{_HEAD}.")}
    # Without its parts, mlx-vlm would run a different model.
    is_loadable = source.is_loadable and not parts.tensors
    return replace(source, tensors=tensors, is_loadable=is_loadable)
