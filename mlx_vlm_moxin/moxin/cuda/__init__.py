"""Accelerated forward passes on NVIDIA GPUs, by this package's kernels.

The model in the folder above works without this folder. ``attach`` connects the two, for all
instances: ``LanguageModel.engine_logits`` becomes ``decoder.logits``, ``engine_hidden_states``
``decoder.hidden_states``, ``VisionModel.engine_embed`` ``patch_embedding.embed`` and
``engine_blocks`` ``towers.blocks``, ``Model.engine_embeddings`` ``embeddings.input_embeddings``,
``MoxinImageProcessor.engine_process`` ``pictures.process``, and ``engine_pixels``
``pictures.pixels``. Where something is not supported (another device, dtype, format or cache;
adapters; training; very large pictures) these return None, and the modules compute it.

``MLX_VLM_MOXIN_KERNELS=0`` in the environment switches the kernels off.
"""

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..image_processing_moxin import MoxinImageProcessor
from ..language import LanguageModel
from ..moxin import Model
from ..projector import Projector
from ..vision import VisionModel
from . import (
    activations,
    decoder,
    embeddings,
    memory_pool,
    patch_embedding,
    peers,
    pictures,
    precompile,
    towers,
)
from .device import enabled

__all__ = ["attach", "enabled"]


def attach() -> None:
    """Make all models try the kernels first, and compile them while weights are being read."""
    LanguageModel.engine_logits = decoder.logits
    LanguageModel.engine_hidden_states = decoder.hidden_states
    VisionModel.engine_embed = patch_embedding.embed
    VisionModel.engine_blocks = towers.blocks
    Model.engine_embeddings = embeddings.input_embeddings
    Projector.gelu = activations.gelu
    MoxinImageProcessor.engine_process = pictures.process
    MoxinImageProcessor.engine_pixels = pictures.pixels
    Model.load_weights = _precompiling(Model.load_weights)
    LanguageModel.shard = _connecting(LanguageModel.shard)


def _precompiling(load_weights: Callable[..., Model]) -> Callable[..., Model]:
    """``load_weights`` that prepares the GPU for the model once its weights are assigned."""

    @functools.wraps(load_weights)
    def load(model: Model, *args: Any, **kwargs: Any) -> Model:
        result = load_weights(model, *args, **kwargs)
        memory_pool.keep(sum(array.nbytes for _, array in tree_flatten(model.parameters())))
        precompile.start(model)
        return result

    return load


def _connecting(shard: Callable[..., None]) -> Callable[..., None]:
    """``shard`` that also connects the processes' GPUs, so that they add up the decoder's parts."""

    @functools.wraps(shard)
    def connect(model: LanguageModel, group: mx.distributed.Group | None = None) -> None:
        group = group or mx.distributed.init()
        shard(model, group)
        peers.connect(group)
        precompile.start_decoder(model)

    return connect
