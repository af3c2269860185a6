"""Moxin-7B VLM: DINOv2 and SigLIP see, a fused MLP projects, a Mistral decoder answers.

Weights: ``moxin-org/Moxin-7B-VLM`` (native Prismatic), ``bobchenyx/Moxin-7B-VLM-hf``.
Paper: https://arxiv.org/abs/2412.06845. Reference code: ``moxin-org/Moxin-VLM``.
"""

from . import processing_moxin  # noqa: F401
from .config import ModelConfig, ProjectorConfig, TextConfig, VisionConfig
from .language import LanguageModel
from .moxin import Model
from .vision import VisionModel

__all__ = [
    "LanguageModel",
    "Model",
    "ModelConfig",
    "ProjectorConfig",
    "TextConfig",
    "VisionConfig",
    "VisionModel",
]
