"""The compiled graphs of a step whose layers may be one array each."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import mlx.nn as nn

from .decoder_sizes import DecoderSizes
from .graph import compile_graph, step_graphs
from .joined_layers import JoinedLayers
from .layer_form import DecoderLayer, LayerForm


class StepGraphs:
    """The graphs of ``step``, one for given sizes, caches and forms of joined layers.

    Args:
        step: of ``decoder``, ``head``, its sizes, the arrays of a pass, and the joined layers (None
            if they are not joined).
        decoder: a ``MistralModel``.
        head: the output head.
        count: number of graphs that are kept, the last ones used.
    """

    def __init__(self, step: Callable, decoder: nn.Module, head: nn.Module, count: int):
        self._joined = JoinedLayers(decoder)
        self._of_modules = step_graphs(step, decoder, head, count)

        @functools.lru_cache(maxsize=count)
        def find(sizes: DecoderSizes, caches: Hashable, forms: tuple[LayerForm, ...]) -> Callable:
            def compute(*arguments: Any) -> Any:
                *arguments, arrays = arguments
                layers = [DecoderLayer(*pair) for pair in zip(forms, arrays)]
                for layer in layers:
                    layer.check()
                return step(decoder, head, sizes, *arguments, layers)

            others: list[nn.Module] = []
            graph = compile_graph(compute, others)

            def call(*arguments: Any) -> Any:
                # MLX reads the arrays of all modules of a graph at each call, which takes long for
                # those of the layers.
                others[:] = decoder["embed_tokens"], decoder["norm"], head
                return graph(*arguments)

            return call

        self._of_joined = find

    def __call__(self, sizes: DecoderSizes, caches: Hashable) -> Callable:
        """The step, a function of the arrays of a pass.

        Args:
            sizes: of the decoder.
            caches: shape or capacity of its caches.

        Raises:
            UnsupportedError: if the kernels do not compute what a layer computes.
        """
        layers = self._joined.read(sizes)
        if layers is None:
            step, further = self._of_modules(sizes, caches), None
        else:
            step = self._of_joined(sizes, caches, tuple(layer.form for layer in layers))
            further = [layer.arrays for layer in layers]
        return lambda *arguments: step(*arguments, further)
