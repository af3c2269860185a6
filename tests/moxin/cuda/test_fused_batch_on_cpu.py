"""The kernel of batches, run on the CPU: its layouts, its arithmetic and the barriers."""

import mlx.core as mx
import pytest
from cuda_support import (
    assert_as_close,
    batch_cache,
    in_float32,
    make_decoder,
    unpacked,
)
from kernels_on_cpu import COMPILER
from mlx_vlm.models.moxin.cuda import (
    decoder_layers,
    decoder_sizes,
    device,
    fused_batch,
    fused_layers,
    kernel,
    kv_cache,
)
from mlx_vlm.models.moxin.cuda.joined_layers import JoinedLayers
from threads_on_cpu import ThreadsOnCpu

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

LENGTH = 30
PADDING = [0, 3, 11, 1, 0, 2, 5, 29]


def hidden_states(model, inputs, cache):
    return model.model(inputs, cache=cache)[:, -1]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("dtype", "bits", "group_size", "batch", "scale", "memory", "config"),
    [
        slow(mx.bfloat16, 16, 64, 8, 1, 227, {"sliding_window": 20}),
        slow(mx.bfloat16, 8, 64, 8, 1e8, 99, {}),
        (mx.bfloat16, 4, 64, 5, 1, 227, {}),
        slow(mx.float16, 4, 32, 3, 1, 227, {}),
    ],
    ids=["bf16", "8 bits, large values, little memory", "4 bits", "4 bits f16"],
)
def test_layers_are_as_close_to_float32_as_the_modules(
    dtype, bits, group_size, batch, scale, memory, config, monkeypatch, tmp_path
):
    threads = ThreadsOnCpu(tmp_path, blocks=3)
    monkeypatch.setattr(kernel, "build", threads)
    monkeypatch.setattr(device, "multiprocessors", lambda: 3)
    monkeypatch.setattr(device, "max_shared_memory", lambda: memory * 1024)
    model = make_decoder(dtype, bits, group_size, intermediate_size=640, **config)
    norm = model.model.layers[0].post_attention_layernorm
    norm.weight = (norm.weight * scale).astype(dtype)  # the MLP's values grow with its square
    inputs, padding = mx.arange(batch)[:, None] + 7, PADDING[:batch]

    plain, cache = unpacked(model), in_float32(batch_cache(LENGTH, padding, dtype))
    expected = hidden_states(plain, inputs, cache)
    plain.set_dtype(dtype)
    rounded = batch_cache(LENGTH, padding, dtype)
    allowed = hidden_states(plain, inputs, rounded)

    ours = batch_cache(LENGTH, padding, dtype)
    sizes = decoder_sizes.read_sizes(model.model)
    layers = decoder_layers.read_layers(model.model, sizes)
    (filled, masked), arrays = kv_cache.places(ours, batch), kv_cache.reserve(ours)
    joined = JoinedLayers(model.model).read(sizes)
    fused = fused_batch.batch_kernel.__wrapped__(
        sizes, layers[0].formats, len(layers), batch, arrays[0].shape[2], joined is not None
    )
    x = model.model.embed_tokens(inputs)[:, 0]
    x = fused_layers.launch(fused, joined or layers, x, filled, arrays, masked)
    assert_as_close(model.model.norm(x), allowed, expected)

    # The last arrays of a layer are its keys and values.
    written = [mx.array(array).view(dtype) for array in threads.arrays[-2:]]
    for new, name in zip(written, ("keys", "values")):
        states = (getattr(layers[-1], name)[:, :, LENGTH] for layers in (rounded, cache))
        assert_as_close(new[:, :, LENGTH], *states)
