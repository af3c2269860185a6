"""Layers that are like one that was checked before.

The check of a layer depends on the classes and settings of its modules, and on which arrays they
have. Comparing these with those of a layer that passed takes a quarter of the check's time, which
counts because it is repeated before each prompt. Nothing that belongs to a model is kept: neither
modules nor arrays, and only those attributes that the check reads.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import mlx.nn as nn
from mlx.nn.layers import distributed

from ...llama.language import Attention
from .. import linear
from .decoder_sizes import DecoderSizes
from .layer_form import LayerForm

# Of layers that differ, such as in their formats; the last ones that were checked.
MAX_KNOWN = 32

Check = Callable[[tuple[nn.Module, ...], DecoderSizes], LayerForm]


def _nothing(module: nn.Module) -> None:
    return None


_packing = attrgetter("bits", "group_size", "mode")
_group = attrgetter("group")
_packing_and_group = attrgetter("bits", "group_size", "mode", "group")

# What the check reads of a module of each class that may pass it.
_SETTINGS: dict[type[nn.Module], Callable[[nn.Module], Any]] = {
    Attention: attrgetter("n_heads", "n_kv_heads", "head_dim", "scale"),
    nn.RoPE: attrgetter("dims", "traditional", "base", "scale"),
    nn.RMSNorm: attrgetter("eps"),
    nn.Linear: _nothing,
    linear.Linear: _nothing,
    nn.QuantizedLinear: _packing,
    linear.QuantizedLinear: _packing,
    distributed.AllToShardedLinear: _group,
    distributed.ShardedToAllLinear: _group,
    distributed.QuantizedAllToShardedLinear: _packing_and_group,
    distributed.QuantizedShardedToAllLinear: _packing_and_group,
}

# Replaced as a whole, so that threads need no lock.
_known: tuple[tuple[Any, LayerForm], ...] = ()


def find(modules: tuple[nn.Module, ...], sizes: DecoderSizes, check: Check) -> LayerForm:
    """What ``check`` returns for these modules of a layer; not called if one like it is known.

    Raises:
        UnsupportedError: if ``check`` does.
    """
    global _known
    try:
        description = _describe(modules, sizes)
    except KeyError:  # a class that is not described here, which the check refuses
        return check(modules, sizes)
    for known, form in _known:
        if known == description:
            return form
    form = check(modules, sizes)
    _known = ((description, form), *_known[: MAX_KNOWN - 1])
    return form


def _describe(modules: Sequence[nn.Module], sizes: DecoderSizes) -> tuple[Any, ...]:
    """All that the check reads of ``modules``: equal values give equal results.

    Of the arrays only their number: reading them by the names of the result fails for others.
    """
    classes = list(map(type, modules))
    settings = [_SETTINGS[kind](module) for kind, module in zip(classes, modules)]
    return sizes, classes, settings, list(map(len, modules))
