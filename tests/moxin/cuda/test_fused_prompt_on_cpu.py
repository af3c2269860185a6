"""The kernel of short prompts, run on the CPU: its layouts, its arithmetic and the barriers."""

import mlx.core as mx
import pytest
from cuda_support import assert_as_close, filled_cache, in_float32, make_decoder, unpacked
from kernels_on_cpu import COMPILER
from mlx_vlm.models.moxin.cuda import (
    decoder_layers,
    decoder_sizes,
    device,
    fused_layers,
    fused_prompt,
    kernel,
    kv_cache,
)
from mlx_vlm.models.moxin.cuda.joined_layers import JoinedLayers
from threads_on_cpu import ThreadsOnCpu

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

LENGTH = 30


def hidden_states(model, inputs, cache):
    return model.model(inputs, cache=cache)[0]


@pytest.mark.parametrize(("bits", "group_size"), [(4, 64)])
def test_layers_are_as_close_to_float32_as_the_modules(
    bits, group_size, on_cpu, kernels_everywhere, monkeypatch, tmp_path
):
    dtype = mx.bfloat16
    threads = ThreadsOnCpu(tmp_path, blocks=3)
    monkeypatch.setattr(kernel, "build", threads)
    monkeypatch.setattr(device, "multiprocessors", lambda: 3)
    model = make_decoder(dtype, bits, group_size, intermediate_size=640)
    inputs = mx.array([[7, 8, 9, 4, 5]])

    plain, cache = unpacked(model), in_float32(filled_cache(LENGTH, dtype))
    expected = hidden_states(plain, inputs, cache)
    plain.set_dtype(dtype)
    rounded = filled_cache(LENGTH, dtype)
    allowed = hidden_states(plain, inputs, rounded)

    ours = filled_cache(LENGTH, dtype)
    sizes = decoder_sizes.read_sizes(model.model)
    layers = decoder_layers.read_layers(model.model, sizes)
    joined = JoinedLayers(model.model).read(sizes)
    arrays, tokens = kv_cache.held(ours), inputs.shape[1]
    fused = fused_prompt.prompt_kernel.__wrapped__(
        sizes, layers[0].formats, len(layers), tokens, arrays[0].shape[2], joined is not None
    )
    x = model.model.embed_tokens(inputs)[0]
    filled = kernel.count_array(LENGTH)
    x = fused_layers.launch(fused, joined or layers, x, filled, arrays)
    assert_as_close(model.model.norm(x), allowed, expected)

    # The last arrays of a layer are its keys and values.
    written = [mx.array(array).view(dtype) for array in threads.arrays[-2:]]
    for new, name in zip(written, ("keys", "values")):
        states = (
            getattr(layers[-1], name)[:, :, LENGTH : LENGTH + tokens] for layers in (rounded, cache)
        )
        assert_as_close(new[:, :, LENGTH : LENGTH + tokens], *states)
