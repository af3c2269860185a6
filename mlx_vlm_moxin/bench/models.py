"""The models to measure: a checkpoint, or random weights in Moxin-7B's sizes."""

import gc
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_vlm_moxin import load, register

BITS = (16, 8, 6, 4)


def real_config():
    """The configuration of Moxin-7B VLM."""
    register()
    from mlx_vlm_moxin.checkpoints.published import MOXIN_7B

    return MOXIN_7B


def _random_like(parameter: mx.array) -> mx.array:
    return (0.02 * mx.random.normal(parameter.shape)).astype(mx.bfloat16)


def random_model(bits: int, group_size: int = 64) -> nn.Module:
    """A model with random bfloat16 weights; below 16 ``bits``, the decoder is quantised.

    It is built one module at a time, so that the peak of memory stays near the final size.
    """
    register()
    from mlx_vlm.models.moxin import Model

    model = Model(real_config())
    modules = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    while modules:
        path, module = modules.pop()  # or a list would keep what was quantised
        module.update(tree_map(_random_like, module.parameters()))
        if bits < 16 and hasattr(module, "to_quantized") and model.quant_predicate(path, module):
            module = module.to_quantized(group_size=group_size, bits=bits)
            model.update_modules(tree_unflatten([(path, module)]))
        mx.eval(module.parameters())
    model.vision_tower.set_dtype(mx.bfloat16)  # position embeddings are not in a leaf module
    mx.eval(model.parameters())
    model.eval()
    return model


def checkpoint_model(path: str) -> tuple[nn.Module, float]:
    """The model at ``path`` and the seconds that loading it took."""
    start = time.perf_counter()
    model, _ = load(path)
    return model, time.perf_counter() - start


def bytes_of(module: nn.Module) -> int:
    """Total size of all parameters in bytes."""
    return sum(value.nbytes for _, value in tree_flatten(module.parameters()))


def free() -> None:
    """Return the memory of models that are no longer referenced."""
    gc.collect()
    mx.clear_cache()


def variants(model: str | None, bits: list[int]) -> list[tuple[str, Callable]]:
    """Models to measure: name, and a function that returns (model, load seconds or None)."""
    if model is not None:
        return [(Path(model).name, lambda: checkpoint_model(model))]

    def builder(width: int) -> Callable:
        return lambda: (random_model(width), None)

    return [("bf16" if width == 16 else f"{width} bits", builder(width)) for width in bits]
