"""Moxin-7B VLM and the rest of the Prismatic family, OpenVLA included.

One or two vision towers, a projector, and a Llama or Mistral decoder; config.json chooses the
parts. Moxin-7B has DINOv2, SigLIP and a Mistral decoder.

Weights: ``moxin-org/Moxin-7B-VLM`` (native), ``bobchenyx/Moxin-7B-VLM-hf``,
``TRI-ML/prismatic-vlms``, ``openvla/openvla-7b``. Papers: https://arxiv.org/abs/2412.06845
(Moxin), https://arxiv.org/abs/2402.07865 (Prismatic VLMs), https://arxiv.org/abs/2406.09246
(OpenVLA). Reference code: github moxin-org/Moxin-VLM, TRI-ML/prismatic-vlms, openvla/openvla.
"""

from . import processing_moxin  # noqa: F401
from .config import ModelConfig, ProjectorConfig, VisionConfig
from .language import LanguageModel
from .moxin import Model
from .text_config import TextConfig
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
