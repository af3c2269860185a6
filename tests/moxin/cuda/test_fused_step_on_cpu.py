"""The kernel of the decoding step, run on the CPU: its layouts, its arithmetic and the barriers."""

import mlx.core as mx
import pytest
from cuda_support import assert_as_close, filled_cache, in_float32, make_decoder, unpacked
from kernels_on_cpu import COMPILER
from mlx_vlm.models.moxin.cuda import (
    decoder_layers,
    decoder_sizes,
    device,
    fused_layers,
    fused_step,
    kernel,
    kv_cache,
)
from mlx_vlm.models.moxin.cuda.joined_layers import JoinedLayers
from threads_on_cpu import ThreadsOnCpu

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

LENGTH = 30


def hidden_states(model, inputs, cache):
    return model.model(inputs, cache=cache)[0, -1]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("dtype", "bits", "group_size", "is_streamed", "scale", "intermediate"),
    [
        slow(mx.bfloat16, 16, 64, False, 1, 512),
        slow(mx.float16, 8, 32, False, 1, 512),
        slow(mx.float16, 4, 64, False, 1, 512),
        # The last pieces of rows are shorter than others.
        (mx.bfloat16, 8, 64, True, 1e8, 2304),
        (mx.bfloat16, 4, 64, True, 1, 4352),
    ],
    ids=["bf16", "8 bits f16", "4 bits f16", "8 bits, large values", "4 bits"],
)
def test_layers_are_as_close_to_float32_as_the_modules(
    dtype,
    bits,
    group_size,
    is_streamed,
    scale,
    intermediate,
    on_cpu,
    kernels_everywhere,
    monkeypatch,
    tmp_path,
):
    threads = ThreadsOnCpu(tmp_path, blocks=3)
    monkeypatch.setattr(kernel, "build", threads)
    monkeypatch.setattr(device, "multiprocessors", lambda: 3)
    monkeypatch.setattr(device, "max_shared_memory", lambda: 227 * 1024)
    model = make_decoder(dtype, bits, group_size, intermediate_size=intermediate)
    norm = model.model.layers[0].post_attention_layernorm
    norm.weight = (norm.weight * scale).astype(dtype)  # the MLP's values grow with its square
    inputs = mx.array([[7]])

    plain, cache = unpacked(model), in_float32(filled_cache(LENGTH, dtype))
    expected = hidden_states(plain, inputs, cache)
    plain.set_dtype(dtype)
    rounded = filled_cache(LENGTH, dtype)
    allowed = hidden_states(plain, inputs, rounded)

    ours = filled_cache(LENGTH, dtype)
    sizes = decoder_sizes.read_sizes(model.model)
    layers = decoder_layers.read_layers(model.model, sizes)
    assert bool(fused_step.find_stream(sizes, layers[0].formats).slots) == is_streamed
    joined = JoinedLayers(model.model).read(sizes)
    (filled, masked), arrays = kv_cache.places(ours, 1), kv_cache.held(ours)
    fused = fused_step.step_kernel.__wrapped__(
        sizes, layers[0].formats, len(layers), arrays[0].shape[2], joined is not None
    )
    x = model.model.embed_tokens(inputs).reshape(-1)
    x = fused_layers.launch(fused, joined or layers, x, filled, arrays, masked)
    assert_as_close(model.model.norm(x), allowed, expected)

    # The last arrays of a layer are its keys and values.
    written = [mx.array(array).view(dtype) for array in threads.arrays[-2:]]
    for new, name in zip(written, ("keys", "values")):
        states = (getattr(layers[-1], name)[:, :, LENGTH] for layers in (rounded, cache))
        assert_as_close(new[:, :, LENGTH], *states)
