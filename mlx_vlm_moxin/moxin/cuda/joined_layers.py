"""Packed decoder layers as one array each, for kernels that compute many layers in one launch.

A packed layer has 23 arrays; handling them took half of the host's time for a token. Before each
pass the arrays of the modules are compared with those that were joined (``joined_arrays``), and
layers with others are joined again.
"""

import weakref
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter

import mlx.core as mx
import mlx.nn as nn

from .decoder_layers import layer_modules, read_layer
from .decoder_sizes import DecoderSizes
from .joined_arrays import Joined, Seen, are_distinct, join
from .layer_form import DecoderLayer, LayerForm, joined_form
from .tracked_array import TrackedArray

_of_layer = itemgetter("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
_of_attention = itemgetter("q_proj", "k_proj", "v_proj", "o_proj")
_of_mlp = itemgetter("gate_proj", "up_proj", "down_proj")


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
        # and all their arrays.
        self._sizes: DecoderSizes | None = None
        self._parts: list[weakref.ref[TrackedArray]] = []
        self._seen = Seen()

    def read(self, sizes: DecoderSizes) -> list[DecoderLayer] | None:
        """The layers as they are now, each of a ``joined_form``; None if they are not joined.

        Raises:
            UnsupportedError: if the kernels do not compute what one of them computes.
        """
        if not _is_packed(self._decoder):
            return None
        if sizes != self._sizes or not self._are_same():
            self._read(sizes)
        return [part().owner.content for part in self._parts] or None

    def _are_same(self) -> bool:
        """Whether the modules have the arrays that were read last."""
        try:
            return self._seen.are(_arrays(self._decoder))
        except (KeyError, TypeError):  # other modules, which are refused when they are read
            return False

    def _read(self, sizes: DecoderSizes) -> None:
        self._sizes, self._parts, writes = None, [], TrackedArray.writes
        blocks, forms = self._decoder["layers"], []
        for block in blocks:
            layer = read_layer(block, sizes)
            layer.check()
            forms.append(layer.form)
            del layer  # which would keep arrays that are moved
        if can_join(forms) and are_distinct(_arrays(self._decoder)):
            self._parts = [_join(block, form).parts[0] for block, form in zip(blocks, forms)]
        self._sizes, self._seen = sizes, Seen(_arrays(self._decoder), writes)


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


def _join(block: nn.Module, form: LayerForm) -> Joined:
    """``block``, which is of this ``form``, as one array."""
    named = zip(layer_modules(block), form.names)
    places = [(module, name) for module, names in named for name in names]
    kind = joined_form(form)
    return join(places, kind, lambda whole: DecoderLayer(kind, [whole]))
