"""Packed layers as one array each, for kernels that compute many layers in one launch.

A packed layer has 23 arrays, and MLX handles each array of a launch several times, which took half
of the host's time for a token. So the arrays of a layer are moved next to each other in memory,
once, and those of the modules become views of their parts. Nothing is stored twice.

Before each pass the arrays of the modules are compared with these views, and layers with others, or
with views that were written in place, are moved again.
"""

import weakref
from collections.abc import Sequence
from itertools import chain
from operator import is_, itemgetter
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .decoder_layers import layer_modules, read_layer
from .decoder_sizes import DecoderSizes
from .layer_form import DecoderLayer, LayerForm, joined_form, joined_offsets
from .tracked_array import TrackedArray, track

_of_layer = itemgetter("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
_of_attention = itemgetter("q_proj", "k_proj", "v_proj", "o_proj")
_of_mlp = itemgetter("gate_proj", "up_proj", "down_proj")


class _Joined(NamedTuple):
    """A layer with one array, and references to its parts in the order of ``LayerForm.names``.

    The parts refer to this, so it exists as long as one of them does.
    """

    layer: DecoderLayer
    parts: list[weakref.ref[TrackedArray]]


def can_join(forms: Sequence[LayerForm]) -> bool:
    """Whether layers of these forms are joined: if all of their matrices are packed.

    Plain layers have nine arrays. Longer prompts join those in another way (``joined_weights``).
    """
    return all(form.bits < 16 for layer in forms for form in layer.formats)


class JoinedLayers:
    """The layers of ``decoder``, a ``MistralModel``, with one array each."""

    def __init__(self, decoder: nn.Module):
        self._decoder = decoder
        # As they were when the layers were read last: the decoder's sizes, one part of each layer,
        # all their arrays, and TrackedArray.writes.
        self._sizes: DecoderSizes | None = None
        self._parts: list[weakref.ref[TrackedArray]] = []
        self._arrays: list[weakref.ref[mx.array]] = []
        self._writes = 0

    def read(self, sizes: DecoderSizes) -> list[DecoderLayer] | None:
        """The layers as they are now, each of a ``joined_form``; None if they are not joined.

        Raises:
            UnsupportedError: if the kernels do not compute what one of them computes.
        """
        if not _is_packed(self._decoder):
            return None
        if sizes != self._sizes or TrackedArray.writes != self._writes or not self._are_same():
            self._read(sizes)
        return [part().owner.layer for part in self._parts] or None

    def _are_same(self) -> bool:
        """Whether the modules have the arrays that were read last."""
        try:
            found, known = _arrays(self._decoder), [array() for array in self._arrays]
        except (KeyError, TypeError):  # other modules, which are refused when they are read
            return False
        return len(found) == len(known) and all(map(is_, found, known))

    def _read(self, sizes: DecoderSizes) -> None:
        self._sizes, self._parts, writes = None, [], TrackedArray.writes
        blocks, forms = self._decoder["layers"], []
        for block in blocks:
            layer = read_layer(block, sizes)
            layer.check()
            forms.append(layer.form)
            del layer  # which would keep arrays that are moved
        arrays = list(map(id, _arrays(self._decoder)))
        if can_join(forms) and len(set(arrays)) == len(arrays):  # or layers share some of them
            self._parts = [_join(block, sizes).parts[0] for block in blocks]
        self._arrays = [weakref.ref(array) for array in _arrays(self._decoder)]
        self._sizes, self._writes = sizes, writes


def _is_packed(decoder: nn.Module) -> bool:
    """Whether the first layer of ``decoder`` seems to be."""
    try:
        return "scales" in decoder["layers"][0]["self_attn"]["q_proj"]
    except (KeyError, TypeError):
        return False


def _arrays(decoder: nn.Module) -> list[mx.array]:
    """What the norms and matrices of all layers contain, in any order. This runs for each token."""
    attentions, mlps, *norms = zip(*map(_of_layer, decoder["layers"]))
    matrices = *map(_of_attention, attentions), *map(_of_mlp, mlps)
    modules = chain.from_iterable((*norms, *matrices))
    return list(chain.from_iterable(map(dict.values, modules)))


def _join(block: nn.Module, sizes: DecoderSizes) -> _Joined:
    """``block`` as one array, into which its arrays are moved if they are not its parts already."""
    form, arrays = read_layer(block, sizes)
    known = arrays[0].owner if isinstance(arrays[0], TrackedArray) else None
    if known is not None and known.layer.form is joined_form(form) and _are_parts(arrays, known):
        return known
    joined, parts = _move(form, arrays)
    modules = layer_modules(block)
    places = [(module, name) for module, names in zip(modules, form.names) for name in names]
    for (module, name), part in zip(places, parts):
        module[name] = part
    del arrays, known
    mx.clear_cache()  # or what the arrays occupied would add up
    return joined


def _are_parts(arrays: Sequence[mx.array], joined: _Joined) -> bool:
    """Whether ``arrays`` are the parts of ``joined``, as they were when it was made."""
    return all(
        part() is array and array.owner is joined for part, array in zip(joined.parts, arrays)
    )


def _move(form: LayerForm, arrays: Sequence[mx.array]) -> tuple[_Joined, list[TrackedArray]]:
    """A layer with the contents of ``arrays``, and its parts instead of them."""
    offsets, pieces = joined_offsets(form), []
    for array, start, end in zip(arrays, offsets, offsets[1:]):
        pieces.append(mx.view(array.flatten(), mx.uint32))
        padding = end - start - pieces[-1].size
        if padding:
            pieces.append(mx.zeros(padding, mx.uint32))
    whole = mx.concatenate(pieces)
    joined, parts = _Joined(DecoderLayer(joined_form(form), [whole]), []), []
    for array, start in zip(arrays, offsets):
        words = whole[start : start + array.nbytes // mx.uint32.size]
        parts.append(track(mx.view(words, array.dtype).reshape(array.shape), joined))
        joined.parts.append(weakref.ref(parts[-1]))
    mx.eval(whole, parts)
    return joined, parts
