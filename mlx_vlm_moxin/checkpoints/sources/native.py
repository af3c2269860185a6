"""Native Prismatic and OpenVLA run directories (``moxin-org/Moxin-7B-VLM``).

``checkpoints/latest-checkpoint.pt`` contains the projector and the language model. Vision towers
that were not trained are timm's published ones; tokenizer and decoder config come from the
language model's repository. Reference: ``prismatic/models`` of github TRI-ML/prismatic-vlms.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from mlx_vlm.models.moxin.prismatic import VISION_BACKBONES, prompt_format
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from mlx_vlm.models.moxin.towers import TIMM_MODELS
from mlx_vlm.models.moxin.weights import PATCH_CONV, is_unused
from transformers import PreTrainedTokenizerFast

from mlx_vlm_moxin.checkpoints.pt_file import read_pt
from mlx_vlm_moxin.checkpoints.sources.base import Source, Tensors
from mlx_vlm_moxin.checkpoints.sources.language_model import (
    VOCAB_MULTIPLE,
    fetch_language_model,
    read_text_config,
    read_tokenizer,
)
from mlx_vlm_moxin.checkpoints.sources.runs import ACTION_BINS, Run, find_checkpoint, read_run
from mlx_vlm_moxin.checkpoints.sources.saved import special_ids
from mlx_vlm_moxin.checkpoints.sources.towers import read_towers
from mlx_vlm_moxin.checkpoints.tensors import LazyTensor

# Part of the checkpoint -> its prefixes -> ours; the first match applies. A single tower is called
# "featurizer"; two towers are called "dino_featurizer" and so on.
PREFIXES = {
    "projector": {
        "projector.0.": "multi_modal_projector.fc1.",
        "projector.2.": "multi_modal_projector.fc2.",
        "projector.4.": "multi_modal_projector.fc3.",
        # The linear projector has one layer, without a number.
        "projector.": "multi_modal_projector.fc1.",
    },
    "llm_backbone": {"llm.": "language_model."},
    "vision_backbone": {
        f"{model.name}_featurizer.": f"vision_tower.{model.name}." for model in TIMM_MODELS.values()
    },
}
_SINGLE_TOWER = "featurizer."


def native_name(part: str, name: str, towers: Sequence[str]) -> str:
    """Our name of the tensor ``name`` in a part of the checkpoint.

    Args:
        towers: names of the model's towers.

    Raises:
        ValueError: if no rule covers it.
    """
    prefixes = PREFIXES[part]
    if part == "vision_backbone" and len(towers) == 1:
        prefixes = {_SINGLE_TOWER: f"vision_tower.{towers[0]}."}
    for prefix, ours in prefixes.items():
        if name.startswith(prefix):
            return ours + name[len(prefix) :]
    raise ValueError(f"The checkpoint's {part} has an unknown tensor {name}")


def _read_parts(path: Path, towers: Sequence[str]) -> tuple[Tensors, bool]:
    """Tensors of a run's checkpoint by our names, and whether they include the towers."""
    content = read_pt(path)
    parts = content.get("model") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not {"projector", "llm_backbone"} <= parts.keys():
        found = list(content)[:5] if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} is not a Prismatic checkpoint: expected 'model' with 'projector' and "
            f"'llm_backbone', found {found}"
        )
    tensors: Tensors = {}
    for part in PREFIXES:
        content = parts.get(part) or {}
        if not isinstance(content, dict):
            raise ValueError(f"{path}: {part} is not a state dict")
        for name, tensor in content.items():
            if not isinstance(name, str) or not isinstance(tensor, LazyTensor):
                raise ValueError(f"{path}: {part} contains {name!r}, which is not a tensor")
            ours = native_name(part, name, towers)
            if ours in tensors:
                raise ValueError(f"{path} has {ours} twice, the second time as {name}")
            tensors[ours] = tensor
    return tensors, bool(parts.get("vision_backbone"))


def _check_towers(config: ModelConfig) -> None:
    """Refuse towers of another type or, at full width, for another picture size."""
    vision = config.vision_config
    kind = ("class_token", "num_register_tokens", "layer_scale", "pre_norm", "patch_bias")
    for timm_id in config.timm_model_ids:
        model = TIMM_MODELS[timm_id]
        tower, published = getattr(vision, model.name), model.tower_config()
        if any(getattr(tower, key) != getattr(published, key) for key in kind):
            raise ValueError(f"The weights given for --{model.name} are not those of {timm_id}")
    # Check the last tower, whose position embedding is never resampled.
    if tower.hidden_size == published.hidden_size and vision.image_size != model.image_size:
        raise ValueError(
            f"The weights given for --{model.name} are for pictures of {vision.image_size} "
            f"pixels; this model needs those for {model.image_size}"
        )


def _make_config(run: Run, llm_directory: Path, tokenizer: PreTrainedTokenizerFast) -> ModelConfig:
    """The model's config, without the sizes that are derived from its tensors."""
    is_vla = run.norm_stats is not None
    towers = VISION_BACKBONES[run.model.vision_backbone_id]
    config = ModelConfig(
        text_config=read_text_config(llm_directory, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        prompt_format=prompt_format(run.model.llm_backbone_id),
        llm_backbone_id=run.model.llm_backbone_id,
        norm_stats=run.norm_stats,
        n_action_bins=ACTION_BINS if is_vla else None,
        pad_to_multiple_of=VOCAB_MULTIPLE if is_vla else None,
        timm_model_ids=[*towers],
        timm_override_act_layers=[*towers.values()],
        arch_specifier=run.model.arch_specifier,
    )
    if config.action_config is not None:
        config.action_config.drop_image_marker = True
    return config


def _in_our_layout(name: str, tensor: LazyTensor) -> LazyTensor:
    """Transpose patch convolutions from OIHW to OHWI; other tensors are unchanged."""
    return tensor.transpose(0, 2, 3, 1) if name.endswith(PATCH_CONV) else tensor


def open_native(
    directory: Path, given_towers: Mapping[str, str | None], llm: str | None = None
) -> Source:
    """Open a native run directory.

    Args:
        directory: the run.
        given_towers: weights of the towers by the towers' names (file, directory or Hub
            repository); timm's repositories by default. Not used if the checkpoint contains towers.
        llm: the language model's config and tokenizer (directory or Hub repository).

    Raises:
        FileNotFoundError, OSError, ValueError: naming what is missing, damaged or not supported.
    """
    run = read_run(directory)
    timm_ids = [*VISION_BACKBONES[run.model.vision_backbone_id]]
    names = [TIMM_MODELS[timm_id].name for timm_id in timm_ids]
    tensors, has_towers = _read_parts(find_checkpoint(directory), names)
    if not has_towers:
        tensors.update(read_towers(timm_ids, given_towers))
    llm_directory = fetch_language_model(run.model.llm_backbone_id, llm)
    format_ = prompt_format(run.model.llm_backbone_id)
    tokenizer = read_tokenizer(llm_directory, run.max_length, format_)
    config = _make_config(run, llm_directory, tokenizer)
    try:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        config.set_sizes(shapes, is_converted=False)
    except IndexError as error:
        raise ValueError(f"A vision tower has a tensor of a wrong shape ({error})") from error
    _check_towers(config)
    image_processor = MoxinImageProcessor.of_towers(
        [TIMM_MODELS[timm_id] for timm_id in timm_ids],
        config.vision_config.image_size,
        run.model.image_resize_strategy,
    )
    return Source(
        kind="a native Prismatic run directory",
        directory=directory,
        is_loadable=False,
        config=config,
        tensors={
            name: _in_our_layout(name, tensor)
            for name, tensor in tensors.items()
            if not is_unused(name, config.vision_config)
        },
        processor=MoxinProcessor(
            image_processor,
            tokenizer,
            image_token_index=config.image_token_index,
            vocab_size=config.text_config.vocab_size,
            num_image_tokens=config.vision_config.num_patches,
        ),
        generation_config=special_ids(config),
        dtype="bfloat16",
    )
