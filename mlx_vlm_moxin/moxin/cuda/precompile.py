"""Compiles a model's kernels in threads, while its weights are still being read.

Sizes, dtypes and formats are known as soon as the weights are assigned, before they are read.
Kernels are compiled in the order of their first use: a picture, the towers, a prompt with a
picture, single tokens, further questions, batches, several pictures, prompts of other lengths.
"""

import atexit
import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from . import (
    activations,
    device,
    embeddings,
    patch_embedding,
    resize_kernels,
    tower_kernel,
    tower_layers,
    tower_tiles,
    towers,
)
from .decoder_builds import PROMPT, Build, decoder_builds, prompt_builds, whole_pass_builds
from .decoder_sizes import read_sizes
from .errors import UnsupportedError, require

MAX_THREADS = 16
# Width and height of a picture.
PICTURE = (640, 480)

_waiting: queue.SimpleQueue[Build] = queue.SimpleQueue()
_threads: list[threading.Thread] = []


def start(model: nn.Module) -> None:
    """Compile the kernels of ``model``, a ``Model`` with weights assigned, in the background."""
    if device.enabled():
        run(list(builds(model)))


def start_decoder(model: nn.Module) -> None:
    """The same for the decoder of ``model``, a ``LanguageModel`` that has been sharded."""
    if device.enabled():
        run(
            [
                *_unless_unsupported(lambda: decoder_builds(model.model, model.lm_head)),
                *_unless_unsupported(lambda: prompt_builds(model.model)),
            ]
        )


def run(found: Sequence[Build]) -> None:
    """Run the builds in threads, in their order."""
    for build in found:
        _waiting.put(build)
    for _ in range(min(MAX_THREADS, os.cpu_count() or 1, len(found))):
        _threads.append(threading.Thread(target=_work, daemon=True))
        _threads[-1].start()


def _work() -> None:
    while True:
        try:
            build = _waiting.get_nowait()
        except queue.Empty:
            return
        try:
            build()
        except (UnsupportedError, RuntimeError):
            continue  # reported where the kernel is used


@atexit.register
def stop() -> None:
    """Drop builds that have not begun and wait for the others: none may outlive the process."""
    while True:
        try:
            _waiting.get_nowait()
        except queue.Empty:
            break
    while _threads:
        _threads.pop().join()


def builds(model: nn.Module) -> Iterator[Build]:
    """Functions that build the kernels that ``model`` will use, in the order of their use."""
    vision, language = getattr(model, "vision_tower", None), getattr(model, "language_model", None)
    if vision is not None:
        yield from _unless_unsupported(lambda: _tower_builds(vision))
    if language is not None:
        yield from _unless_unsupported(lambda: _embedding_builds(language.model))
        yield from _unless_unsupported(lambda: decoder_builds(language.model, language.lm_head))
        actions = getattr(getattr(model, "config", None), "action_config", None)
        if actions is not None and actions.decoding == "parallel" and not actions.causal:
            yield from _unless_unsupported(lambda: whole_pass_builds(language.model))
    if vision is not None:
        yield from _unless_unsupported(lambda: _pictures_builds(vision))
    if language is not None:
        yield from _unless_unsupported(lambda: prompt_builds(language.model))


def _unless_unsupported(find: Callable[[], Iterator[Build]]) -> list[Build]:
    try:
        return list(find())
    except UnsupportedError:
        return []


def _checked_pairs(vision: nn.Module) -> list[tower_layers.LayerPair]:
    """The layers of both towers, which the kernels support."""
    require(len(vision.towers) == 2, "there is one tower")
    pairs = tower_layers.make_pairs(vision.towers)
    tower_layers.check(pairs)
    return pairs


def _tower_builds(vision: nn.Module) -> Iterator[Build]:
    pairs = _checked_pairs(vision)
    yield from _unless_unsupported(lambda: _patch_builds(vision.towers))
    size = vision.config.image_size
    yield partial(resize_kernels.resize_width, 0, *PICTURE, size)
    yield partial(resize_kernels.resize_height, 0, size, 3 * len(vision.towers))
    patches = vision.config.num_patches
    tokens = [(1, patches + tower.config.num_prefix_tokens) for tower in vision.towers]
    for stage in tower_layers.stages(pairs):
        yield partial(tower_kernel.tower_layers, *towers.kernel_arguments(stage, tokens))


def _pictures_builds(vision: nn.Module) -> Iterator[Build]:
    """The towers' kernels for all numbers of pictures."""
    pairs = _checked_pairs(vision)
    for tiles, stage in itertools.product(tower_tiles.usable_tiles(), tower_layers.stages(pairs)):
        *arguments, _ = towers.kernel_arguments(stage, [(1, 1), (1, 1)])
        yield partial(tower_kernel.tower_layers, *arguments, tiles)


def _embedding_builds(decoder: nn.Module) -> Iterator[Build]:
    sizes, table = read_sizes(decoder), decoder.embed_tokens
    yield partial(activations.gelu_kernel, sizes.dtype, sizes.hidden)
    yield partial(embeddings.merge_features, sizes.dtype, PROMPT, sizes.hidden)
    for ids in embeddings.ID_DTYPES if type(table) is nn.Embedding else ():
        arguments = sizes.dtype, ids, PROMPT, *table.weight.shape
        yield partial(embeddings.embed_tokens, *arguments)


def _patch_builds(both: list[nn.Module]) -> Iterator[Build]:
    patch_embedding.check(both)
    patch = both[0].patch_embed.proj.weight.shape[1]
    yield partial(patch_embedding.build, both, mx.float32, (1, patch, patch))
