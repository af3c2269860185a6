"""The files of a converted model except its weights, and the check that it is complete."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_vlm import load
from mlx_vlm.models.moxin.config import STATISTICS_FILE, ModelConfig
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from mlx_vlm.utils import save_config

# Derived from other settings, part of another file, or valid only in HF-converted configs.
_DERIVED = (
    "timm_model_ids",
    "timm_override_act_layers",
    "image_sizes",
    "arch_specifier",
    "generation_config",
)
_DERIVED_TEXT = ("layer_types", "rope_parameters")
# What transformers adds about this machine and its version.
_LOCAL_TOKENIZER = ("is_local", "local_files_only", "backend")


def complete_config(config: ModelConfig, quantization: dict[str, Any] | None) -> dict[str, Any]:
    """config.json of a conversion, with every setting written explicitly.

    Args:
        config: the config of the converted model.
        quantization: settings of packed layers; written as ``quantization`` for MLX and as
            ``quantization_config`` for the Hub, as mlx-vlm does.
    """
    content = {k: v for k, v in asdict(config).items() if k not in _DERIVED and v is not None}
    content["model_type"] = "moxin"
    content["text_config"] = {
        k: v for k, v in content["text_config"].items() if k not in _DERIVED_TEXT
    }
    vision_config = content["vision_config"]
    content["vision_config"] = {k: v for k, v in vision_config.items() if v is not None}
    if quantization is not None:
        content["quantization"] = content["quantization_config"] = quantization
    return content


def _save_processor(processor: MoxinProcessor, directory: Path) -> None:
    processor.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content = {k: v for k, v in content.items() if k not in _LOCAL_TOKENIZER}
    # The class that reads tokenizer.json unchanged, under the name that all versions know.
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    content["processor_class"] = type(processor).__name__
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_settings(
    directory: Path,
    config: ModelConfig,
    quantization: dict[str, Any] | None,
    processor: MoxinProcessor,
    generation_config: dict[str, Any],
) -> None:
    """Write config.json, generation_config.json, tokenizer and preprocessor files.

    A model with action statistics also gets dataset_statistics.json.
    """
    save_config(complete_config(config, quantization), directory / "config.json")
    text = json.dumps(generation_config, indent=2) + "\n"
    (directory / "generation_config.json").write_text(text, encoding="utf-8")
    if config.norm_stats:
        # OpenVLA's tools read the statistics from this file.
        text = json.dumps(config.norm_stats, indent=2) + "\n"
        (directory / STATISTICS_FILE).write_text(text, encoding="utf-8")
    _save_processor(processor, directory)


def check_output(directory: Path) -> None:
    """Check that stock mlx-vlm can load ``directory``, without computing a tensor.

    Raises:
        RuntimeError: if it cannot be loaded, which means a bug in this package.
    """
    try:
        load(str(directory), lazy=True)
    except Exception as error:
        raise RuntimeError(
            f"The conversion is unusable and was discarded: mlx-vlm reports {error!r}"
        ) from error
