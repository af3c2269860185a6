"""A function that fails while it is traced leaves the modules as they were."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin.cuda.errors import UnsupportedError
from mlx_vlm.models.moxin.cuda.graph import compile_graph, step_graphs


@pytest.mark.parametrize("kind", [UnsupportedError, RuntimeError])
def test_a_failure_is_raised_after_the_trace(kind):
    layer = nn.Linear(4, 4)
    weight = mx.array(layer.weight)

    def function(x):
        layer(x)
        raise kind("a reason")

    graph = compile_graph(function, [layer])
    with pytest.raises(kind, match="a reason"):
        graph(mx.ones((1, 4)))
    assert mx.array_equal(layer.weight, weight).item()
    with pytest.raises(UnsupportedError):  # the trace is kept
        graph(mx.ones((1, 4)))


def test_weights_may_change_between_calls():
    layer = nn.Linear(4, 4)
    graph = compile_graph(lambda x: [layer(x)], [layer])
    x = mx.ones((1, 4))
    graph(x)
    layer.weight = 2 * layer.weight
    assert mx.allclose(graph(x)[0], layer(x)).item()


def test_a_trace_leaves_the_same_arrays_in_the_modules():
    layer = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = [array for _, array in tree_flatten(layer.parameters())]
    compile_graph(lambda x: [layer(x)], [layer])(mx.ones((1, 4)))
    after = [array for _, array in tree_flatten(layer.parameters())]
    assert len(after) == 4
    assert all(array is old for array, old in zip(after, before))


def test_graphs_of_the_last_sizes_are_kept():
    traces, layer = [], nn.Linear(4, 4)

    def step(decoder, head, sizes, x):
        traces.append(sizes)
        return [head(decoder(x))]

    find = step_graphs(step, layer, layer, count=2)
    for sizes in "abababcab":
        find(sizes, 256)(mx.ones((1, 4)))
    assert traces == ["a", "b", "c", "a", "b"]
