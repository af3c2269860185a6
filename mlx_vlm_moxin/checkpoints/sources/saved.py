"""Checkpoints that mlx-vlm loads without conversion: HF-converted ones, and conversions."""

from pathlib import Path
from typing import Any

from mlx_vlm.models.moxin.config import GenerationDefaults, ModelConfig
from mlx_vlm.models.moxin.image_settings import CONFIG_FILE
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from mlx_vlm.models.moxin.validation import check_settings

from mlx_vlm_moxin.checkpoints.native_output import native_errors_dropped
from mlx_vlm_moxin.checkpoints.sources.base import Source, Tensors, our_tensors
from mlx_vlm_moxin.checkpoints.sources.directory import read_json

# The keys that mlx_vlm.convert checks, and their name in newer transformers.
_DTYPE_KEYS = ("torch_dtype", "dtype")
# Keys of generation_config.json about the origin of the file.
_PROVENANCE = ("_from_model_config", "transformers_version")


def read_config(directory: Path, tensors: Tensors) -> ModelConfig:
    """Complete config of a directory with safetensors, including sizes derived from tensors.

    Raises:
        FileNotFoundError, ValueError: naming what is missing, malformed or not supported.
    """
    try:
        config = ModelConfig.from_dict(read_json(directory / "config.json"))
        if config.timm_model_ids is not None:
            config.set_sizes({name: tensor.shape for name, tensor in tensors.items()})
        config.read_statistics(directory)
    except KeyError as error:
        raise ValueError(f"{directory} has no tensor {error}") from error
    return config


def read_processor(directory: Path) -> MoxinProcessor:
    """Tokenizer and image settings of a checkpoint directory.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or wrong.
    """
    if (directory / CONFIG_FILE).exists():
        read_json(directory / CONFIG_FILE)
    with native_errors_dropped():
        return MoxinProcessor.from_pretrained(directory)


def special_ids(config: ModelConfig) -> dict[str, int]:
    """The minimal contents of generation_config.json."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(config, name) for name in names}


def complete_generation_config(content: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """generation_config.json of a conversion, from that of its source."""
    content = {**special_ids(config), **content}
    return {k: v for k, v in content.items() if k not in _PROVENANCE}


def read_generation_config(directory: Path, config: ModelConfig) -> dict[str, Any]:
    """generation_config.json of a source; only the special ids if there is none."""
    path = directory / "generation_config.json"
    content = read_json(path) if path.exists() else {}
    check_settings(GenerationDefaults, content, file=path.name)
    return complete_generation_config(content, config)


def config_dtype(raw_config: dict[str, Any]) -> str | None:
    """The dtype of the weights in a config.json, at top level or in ``text_config``."""
    for config in (raw_config, raw_config.get("text_config") or {}):
        for key in _DTYPE_KEYS:
            if config.get(key):
                return str(config[key]).removeprefix("torch.")
    return None


def packed_layers(tensors: Tensors) -> list[str]:
    """Module paths of the quantised layers."""
    return [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]


def model_source(directory: Path, config: ModelConfig, tensors: Tensors, **facts: Any) -> Source:
    """A source whose tokenizer, image settings and generation settings are files of its directory.

    Args:
        tensors: under their names in an HF-converted checkpoint, or ours.
        facts: the other attributes of ``Source``.
    """
    return Source(
        directory=directory,
        config=config,
        tensors=our_tensors(tensors, config.vision_config),
        processor=read_processor(directory),
        generation_config=read_generation_config(directory, config),
        **facts,
    )


def open_hf(directory: Path, tensors: Tensors) -> Source:
    """Open an HF-converted Prismatic checkpoint.

    Args:
        directory: the checkpoint.
        tensors: the tensors of its files, under the files' names.
    """
    return model_source(
        directory,
        read_config(directory, tensors),
        tensors,
        kind="an HF-converted Prismatic checkpoint",
        is_loadable=True,
        dtype=config_dtype(read_json(directory / "config.json")),
    )


def open_own(directory: Path, tensors: Tensors) -> Source:
    """Open a conversion, made by this package or by stock ``mlx_vlm.convert``.

    The latter leaves ``quantization`` in config.json when it dequantises, so only the tensors show
    whether layers are quantised.

    Raises:
        ValueError: if tensors are packed, but config.json has no settings for them.
    """
    config = read_config(directory, tensors)
    quantization = None
    if packed_layers(tensors):
        quantization = read_json(directory / "config.json").get("quantization")
        if not isinstance(quantization, dict):
            raise ValueError(f"{directory}/config.json lacks `quantization` for packed tensors")
    return model_source(
        directory,
        config,
        tensors,
        kind="an MLX conversion",
        is_loadable=True,
        quantization=quantization,
    )
