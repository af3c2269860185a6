"""Kernels of many layers, run on the CPU and compared with the modules."""

from collections.abc import Callable

import mlx.core as mx
from cuda_support import assert_as_close, in_float32, unpacked
from mlx_vlm.models.moxin.cuda import decoder_layers, decoder_sizes, device, kernel
from mlx_vlm.models.moxin.cuda.joined_layers import JoinedLayers
from threads_on_cpu import ThreadsOnCpu

# Tokens in the caches before.
LENGTH = 30


def run_on_cpu(folder, monkeypatch) -> ThreadsOnCpu:
    """What kernels are built with from now on, for a GPU of three multiprocessors."""
    threads = ThreadsOnCpu(folder, blocks=3)
    monkeypatch.setattr(kernel, "build", threads)
    monkeypatch.setattr(device, "multiprocessors", lambda: 3)
    return threads


def check_layers(
    model,
    dtype: mx.Dtype,
    inputs,
    make_cache: Callable,
    threads,
    launch: Callable,
    length: int = LENGTH,
):
    """Check that hidden states, new keys and values are as close to float32 as the modules'.

    Args:
        inputs: ids ``[B, T]``, the tokens after those in the caches.
        make_cache: the caches, always the same.
        threads: see ``run_on_cpu``.
        launch: hidden states by the kernel, from a decoder's sizes, layers and caches.
        length: of the caches.
    """

    def hidden_states(model, cache):
        return model.model(inputs, cache=cache).flatten(0, 1)

    plain, exact = unpacked(model), in_float32(make_cache())
    expected = hidden_states(plain, exact)
    plain.set_dtype(dtype)
    rounded = make_cache()
    allowed = hidden_states(plain, rounded)

    sizes = decoder_sizes.read_sizes(model.model)
    layers = JoinedLayers(model.model).read(sizes)
    layers = layers or decoder_layers.read_layers(model.model, sizes)
    x = launch(sizes, layers, make_cache())
    assert_as_close(model.model.norm(x).reshape(expected.shape), allowed, expected)

    # The last arrays of a layer are its keys and values.
    written = [mx.array(array).view(dtype) for array in threads.arrays[-2:]]
    new = slice(length, length + inputs.shape[1])
    for array, name in zip(written, ("keys", "values")):
        states = (getattr(layers[-1], name)[:, :, new] for layers in (rounded, exact))
        assert_as_close(array[:, :, new], *states)
